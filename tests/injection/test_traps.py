"""The traps that fail silently, each on its own: what is tested here gives wrong numbers, not errors, when
it breaks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomModel,
    DynamicCache,
    Gemma2Config,
    Gemma2Model,
    OlmoConfig,
    OlmoModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from autopeft.backbones import FAMILIES, base_model_of
from autopeft.errors import CompositionError, UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.attention import DELEGATES
from autopeft.recipe import Recipe


def prefix_recipe(length: int = 3, at: Any = "all") -> Recipe:
    return Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "p",
            "layers": [{"at": at, "attach": [{"prefix_tuning": {"length": length}}]}],
        }
    )


def prompt_recipe(length: int = 3) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "p", "model": [{"prompt_tuning": {"length": length}}]})


def with_prefix(name: str, **kwargs: Any) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name, **kwargs)
    hybrid = attach(model, prefix_recipe(), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_causal_prefix_equals_a_real_cache_also_without_a_mask(name: str, attention: str) -> None:
    """Without a mask the fused function would align queries with the prefix and drop the last tokens."""
    model, hybrid = with_prefix(name, attention=attention)
    ids = tiny_inputs(name)["input_ids"]
    ours = model(input_ids=ids).logits
    torch.testing.assert_close(ours, model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    module: Any = hybrid.modules["prefix_tuning"]
    pairs = [module.key_value(s, None, None) for s in hybrid.graph.sites()]
    hybrid.detach()
    heads = 2 if name == "llama" else 4
    cache = DynamicCache(config=model.config)
    for i, (k, v) in enumerate(pairs):
        split = [t.detach().expand(2, -1, -1).reshape(2, 3, heads, 8).transpose(1, 2) for t in (k, v)]
        cache.update(split[0], split[1], i)
    positions = torch.arange(ids.shape[1]).expand(2, -1)
    mask = torch.ones(2, 3 + ids.shape[1], dtype=torch.long)
    real = model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions).logits
    torch.testing.assert_close(ours, real, atol=1e-5, rtol=1e-4)


def test_our_names_are_known_to_the_mask_interface_and_hide_what_model_code_looks_for() -> None:
    for name in DELEGATES.values():
        assert name in ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
        assert "sdpa" not in name
        assert "flash" not in name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_t5_position_bias_covers_the_prefix(attention: str) -> None:
    """Eager and fused agree only where the bias has a zero column for each prefix row."""
    outs = []
    for kind in ("sdpa", attention):
        model, _ = with_prefix("t5", attention=kind)
        outs.append(logits(model, tiny_inputs("t5", pad=2)))
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
    bare = logits(tiny_model("t5"), tiny_inputs("t5", pad=2))
    assert not torch.allclose(outs[0], bare, atol=1e-3)


def test_gemma_keeps_its_own_eager_function() -> None:
    """Its scores are soft-capped: another file's eager attention would give other numbers in silence."""
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attn_logit_softcapping=0.5,
        query_pre_attn_scalar=1,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = Gemma2Model(config).eval()
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.5)
    ids = tiny_inputs("llama")["input_ids"]
    before = model(input_ids=ids).last_hidden_state
    recipe = prefix_recipe(1, at=[0])
    hybrid = attach(model, recipe, seed=0)
    module: Any = hybrid.modules["prefix_tuning"]
    calls = []
    modeling = __import__("sys").modules[type(model.layers[0].self_attn).__module__]
    original = modeling.eager_attention_forward
    modeling.eager_attention_forward = lambda *a, **k: calls.append(k.get("softcap")) or original(*a, **k)
    try:
        after = model(input_ids=ids).last_hidden_state
    finally:
        modeling.eager_attention_forward = original
    assert calls == [0.5, 0.5]
    assert module is not None
    assert not torch.allclose(before, after)


class Aloof(torch.nn.Module):
    """An attention that ignores its keyword arguments, as families without dispatch do."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.query, self.key, self.value = inner.query, inner.key, inner.value

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return self.value(hidden_states), None


def test_attention_that_does_not_dispatch_raises_instead_of_ignoring_the_prefix() -> None:
    model = tiny_model("bert")
    for layer in base_model_of(model).encoder.layer:
        layer.attention.self = Aloof(layer.attention.self)
    attach(model, prefix_recipe(), seed=0)
    with pytest.raises(CompositionError, match="did not call the attention function"):
        logits(model, tiny_inputs("bert"))


def test_an_unknown_attention_implementation_is_refused() -> None:
    model = tiny_model("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(CompositionError, match="attn_implementation='sdpa'"):
        attach(model, prefix_recipe(), seed=0)
    assert not hasattr(model, "autopeft")


def test_a_family_without_map_is_not_given_a_residual_stream_that_was_guessed() -> None:
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = OlmoConfig(**sizes, num_hidden_layers=2, pad_token_id=0)
    item = {"serial_adapter": {"bottleneck": 4}}
    recipe = Recipe.from_dict({"autopeft": 2, "name": "x", "layers": [{"at": "all", "attach": [item]}]})
    with pytest.raises(CompositionError, match="no site map that says where its norms are"):
        attach(OlmoModel(config), recipe)


# Reserved rows


def embeddings_of(name: str, model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids)


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "mpnet", "gpt2", "llama"])
def test_a_prompt_of_real_tokens_equals_feeding_them(name: str, pad: int) -> None:
    """RoBERTa's positions start at padding_idx + 1, the pooled row moves, masks and positions grow: all of
    it at once."""
    model = tiny_model(name)
    inputs = tiny_inputs(name, pad=pad)
    front = torch.tensor([[11, 12, 13]]).expand(2, -1)
    if model.config.model_type in ("bert", "roberta", "distilbert", "mpnet"):
        model_full = {
            "input_ids": torch.cat([front, inputs["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones_like(front), inputs["attention_mask"]], 1),
        }
        expected = base_model_of(model)(**model_full).last_hidden_state[:, 3:]
    else:
        ids = torch.cat([front, inputs["input_ids"]], 1)
        mask = torch.cat([torch.ones_like(front), inputs["attention_mask"]], 1)
        expected = base_model_of(model)(input_ids=ids, attention_mask=mask).last_hidden_state[:, 3:]
    hybrid = attach(model, prompt_recipe(), seed=0)
    with torch.no_grad():
        next(hybrid.root.parameters()).copy_(embeddings_of(name, model, front[0]))
    got = base_model_of(model)(**inputs).last_hidden_state
    assert got.shape == expected.shape
    torch.testing.assert_close(got[:, :7], expected[:, :7], atol=1e-5, rtol=1e-4)
    embeds = embeddings_of(name, model, inputs["input_ids"])
    if name not in ("roberta", "mpnet"):  # their positions come from the ids
        by_embeds = base_model_of(model)(
            inputs_embeds=embeds, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        torch.testing.assert_close(by_embeds[:, :7], got[:, :7], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_explicit_positions_move_with_the_prompt(name: str) -> None:
    model = tiny_model(name)
    hybrid = attach(model, prompt_recipe(), seed=0)
    randomise(hybrid.root, std=0.5)
    inputs = tiny_inputs(name)
    positions = torch.arange(7).expand(2, -1)
    torch.testing.assert_close(model(**inputs, position_ids=positions).logits, model(**inputs).logits)


def test_pooler_reads_the_first_row_of_the_text() -> None:
    model = tiny_model("bert")
    seen: list[Tensor] = []
    base = base_model_of(model)
    attach(model, prompt_recipe(), seed=0)
    base.pooler.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    out = base(**tiny_inputs("bert"))
    assert seen[0].shape[1] == 7
    assert torch.equal(seen[0], out.last_hidden_state)


def test_hidden_states_lose_the_reserved_rows_too() -> None:
    model = tiny_model("bert")
    attach(model, prompt_recipe(), seed=0)
    out = base_model_of(model)(**tiny_inputs("bert"), output_hidden_states=True)
    assert {h.shape[1] for h in out.hidden_states} == {7}


def test_t5_decoder_attends_to_the_encoders_prompt() -> None:
    model = tiny_model("t5")
    hybrid = attach(model, prompt_recipe(), seed=0)
    inputs = tiny_inputs("t5", pad=3)
    with torch.no_grad():
        next(hybrid.root.parameters()).copy_(model.get_input_embeddings()(torch.tensor([11, 12, 13])))
    got = logits(model, inputs)
    hybrid.detach()
    front = torch.tensor([[11, 12, 13]]).expand(2, -1)
    full = {
        **inputs,
        "input_ids": torch.cat([front, inputs["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(front), inputs["attention_mask"]], 1),
    }
    assert isinstance(model, T5ForConditionalGeneration)
    torch.testing.assert_close(got, logits(model, full), atol=3e-5, rtol=1e-4)


def test_a_sequence_beyond_the_positions_is_refused() -> None:
    model = tiny_model("bert")
    attach(model, prompt_recipe(3), seed=0)
    with pytest.raises(UsageError, match="exceed the 64 positions"):
        logits(model, tiny_inputs("bert", length=62))


def test_prompt_and_prefix_and_gate_together_with_padding() -> None:
    recipe = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [{"at": "all", "attach": [{"gate": ["lora", {"prefix_tuning": {"length": 2}}]}]}],
            "model": [{"prompt_tuning": {"length": 3}}, {"prompt_tuning": {"length": 2}}],
        }
    )
    model = tiny_model("bert")
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root, std=0.5)
    torch.testing.assert_close(
        logits(model, tiny_inputs("bert")), logits(model, tiny_inputs("bert", pad=5)), atol=1e-5, rtol=1e-4
    )


def test_unmasked_gate_depends_on_padding_as_the_authors_does() -> None:
    recipe = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [{"at": "all", "attach": [{"gate": {"children": ["lora"], "masked": False}}]}],
        }
    )
    model = tiny_model("bert")
    randomise(attach(model, recipe, seed=0).root, std=0.5)
    assert not torch.allclose(
        logits(model, tiny_inputs("bert")), logits(model, tiny_inputs("bert", pad=5)), atol=1e-4
    )


# Weights


def test_weights_are_back_after_an_exception_inside_the_forward() -> None:
    model = tiny_model("bert")
    recipe = Recipe.from_dict(
        {"autopeft": 2, "name": "x", "layers": [{"at": "all", "attach": ["dora"]}], "model": ["bitfit"]}
    )
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root)
    query = base_model_of(model).encoder.layer[0].attention.self.query
    weight, bias = query.weight, query.bias
    with pytest.raises(RuntimeError):
        query(torch.zeros(1, 2, 5))
    assert query.weight is weight
    assert query.bias is bias
    logits(model, tiny_inputs("bert"))
    assert query.weight is weight


def test_every_owner_of_a_tied_tensor_gets_the_delta() -> None:
    from transformers import BertForMaskedLM

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = BertForMaskedLM(config).eval()
    recipe = Recipe.from_dict(
        {"autopeft": 2, "name": "x", "model": [{"fish_mask": {"keep": 9000, "samples": 1}}]}
    )
    hybrid = attach(model, recipe, seed=0)
    module: Any = hybrid.modules["fish_mask"]
    delta = _sparse(module)
    assert delta.tensors[0].name == "embeddings.word_embeddings.weight"
    delta.select(torch.arange(9000))  # all 50 × 32 word embeddings, and what follows
    hybrid.refresh()
    seen: dict[str, Tensor] = {}
    decoder = model.cls.predictions.decoder
    embeddings = model.bert.embeddings.word_embeddings
    decoder.register_forward_pre_hook(lambda m, a: seen.update(decoder=m.weight))
    embeddings.register_forward_pre_hook(lambda m, a: seen.update(embeddings=m.weight))
    with torch.no_grad():
        delta.values.fill_(0.25)
    model(input_ids=torch.tensor([[3, 4]]))
    original = embeddings.weight
    torch.testing.assert_close(seen["embeddings"], original + 0.25)
    torch.testing.assert_close(seen["decoder"], original + 0.25)


def _sparse(module: torch.nn.Module) -> Any:
    from autopeft.nn import SparseDelta

    return next(m for m in module.modules() if isinstance(m, SparseDelta))


def test_a_context_of_another_forward_is_never_read() -> None:
    """Two forwards are open and recomputed in reverse order; gates read their own mask each time."""
    recipe = Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "x",
            "layers": [{"at": "all", "attach": [{"gate": [{"parallel_adapter": {"bottleneck": 4}}]}]}],
        }
    )
    model = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    )
    hybrid = attach(model, recipe, seed=0)
    randomise(hybrid.root, std=0.5)
    inputs = tiny_inputs("bert")
    masks = [inputs["attention_mask"].clone(), inputs["attention_mask"].clone()]
    masks[1][:, 3:] = 0

    def gradients() -> list[Tensor]:
        hybrid.root.zero_grad()
        outs = [model(input_ids=inputs["input_ids"], attention_mask=m).last_hidden_state for m in masks]
        sum(o.pow(2).sum() * w for o, w in zip(outs, (1.0, -0.7), strict=True)).backward()
        return [p.grad.clone() for p in hybrid.root.parameters()]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# Found in review


@pytest.mark.parametrize("source", [5, 7])
@pytest.mark.parametrize("item", ["ia3", {"lora": {"rank": 2, "sites": ["cross_k", "cross_v"]}}])
def test_a_gate_on_cross_attention_pools_the_source_by_its_own_mask(item: Any, source: int) -> None:
    """Also where source and target are of one length, so that the target's mask would fit."""
    model = tiny_model("t5")
    recipe = Recipe.from_dict({"name": "x", "layers": [{"attach": [{"gate": [item]}]}]})
    randomise(attach(model, recipe, seed=0).root, std=0.5)
    bare, padded = tiny_inputs("t5", length=source), tiny_inputs("t5", length=source, pad=3)
    torch.testing.assert_close(logits(model, padded), logits(model, bare), atol=1e-5, rtol=1e-4)


def test_a_gate_refuses_a_sequence_in_chunks() -> None:
    model = tiny_model("bert", chunk_size_feed_forward=2)
    recipe = Recipe.from_dict(
        {"name": "x", "layers": [{"attach": [{"gate": [{"parallel_adapter": {"bottleneck": 2}}]}]}]}
    )
    attach(model, recipe, seed=0)
    with pytest.raises(CompositionError, match="in chunks"):
        logits(model, tiny_inputs("bert", length=8))


def test_a_gate_refuses_a_recomputation_that_lost_its_forward() -> None:
    """BLOOM hands no keyword arguments on: the mask would be missing at recomputation, in silence."""
    model = BloomModel(BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4)).train()
    item = {"gate": [{"lora": {"rank": 2, "sites": ["up"]}}]}
    hybrid = attach(model, Recipe.from_dict({"name": "x", "layers": [{"attach": [item]}]}), seed=0)
    randomise(hybrid.root)
    inputs = tiny_inputs("bert", pad=2)
    model(**inputs).last_hidden_state.sum().backward()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(CompositionError, match="without gradient checkpointing"):
        model(**inputs).last_hidden_state.sum().backward()


def test_a_prompt_fills_its_rows_once_where_token_types_share_the_embeddings() -> None:
    model = tiny_model("gpt2")
    hybrid = attach(model, prompt_recipe(3), seed=0)
    randomise(hybrid.root, std=0.5)
    inputs = tiny_inputs("gpt2")
    types = torch.full_like(inputs["input_ids"], 4)
    got = model(**inputs, token_type_ids=types).logits
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    by_embeds = model(inputs_embeds=embeds, token_type_ids=types).logits
    table = next(hybrid.root.parameters()).detach()
    hybrid.detach()
    full = torch.cat([table.expand(2, -1, -1), embeds.detach()], dim=1)
    types = torch.cat([types.new_zeros(2, 3), types], dim=1)
    expected = model(inputs_embeds=full, token_type_ids=types).logits[:, 3:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_embeds, expected, atol=1e-5, rtol=1e-4)


def test_hidden_states_of_a_tuple_lose_the_reserved_rows_too() -> None:
    model = tiny_model("bert", attention="eager")
    attach(model, prompt_recipe(3), seed=0)
    asked = {"output_hidden_states": True, "output_attentions": True}
    out = base_model_of(model)(**tiny_inputs("bert"), **asked, return_dict=False)
    assert [h.shape[1] for h in out[2]] == [7] * 4
    assert {a.shape for a in out[3]} == {(2, 4, 10, 10)}


def test_a_model_that_goes_past_the_root_is_not_given_prompts_that_it_would_ignore(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The resolver cannot know that OPT's language model calls the decoder inside of the base model."""
    monkeypatch.delitem(cast(dict[str, Any], FAMILIES), "opt")
    config = OPTConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        max_position_embeddings=60, word_embed_proj_dim=32,
    )  # fmt: skip
    model, inputs = OPTForCausalLM(config).eval(), tiny_inputs("gpt2")
    with attach(model, prompt_recipe(), seed=0), pytest.raises(CompositionError, match="ignored in silence"):
        model(**inputs)
    with attach(model, prefix_recipe(), seed=0):
        model(**inputs)

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from support.classifiers import classifier as with_rows
from support.classifiers import encoded_rows
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import configured, sites_of
from torch import Tensor
from transformers import BertConfig, PreTrainedModel, T5Config

from autopeft.backbones import base_model_of, spec_of
from autopeft.errors import MethodError
from autopeft.hybrid import Hybrid, attach
from autopeft.injection.rows import ReadRows
from autopeft.method import Slot
from autopeft.recipe import Recipe
from autopeft.training.losses import logits_of

SMALL = {"length": 2, "kv_length": 3, "qk_width": 4, "positions": 24}


def recipe(*layers: Any, **config: Any) -> Recipe:
    entry = {"aprompt": {**SMALL, **config}}
    body = {"autopeft": 2, "name": "a", "model": [entry]}
    return Recipe.from_dict({**body, "layers": [{"attach": list(layers)}]} if layers else body)


def attached(name: str, **config: Any) -> tuple[PreTrainedModel, Any, Hybrid]:
    model = tiny_model(name, attention=config.pop("attention", "sdpa"))
    hybrid = attach(model, recipe(**config), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid.modules["aprompt"], hybrid


def test_defaults() -> None:
    c = configured("aprompt").config
    assert (c.length, c.kv_length, c.qk_width, c.positions, c.init) == (10, 10, 5, 512, "uniform")


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [(BertConfig(), 12), (T5Config(d_model=768, num_layers=12, num_heads=12, d_ff=3072), 24)],
)
def test_count_of_the_formula(backbone: Any, layers: int) -> None:
    """L·(l + 2·l_kv)·d + 2·L·n·l_qk."""
    spec = spec_of(backbone)
    method = configured("aprompt", kv_length=20, qk_width=7)
    count = method.parameter_count(sites_of(method, spec), spec)
    assert count.deployed == count.trained == layers * (10 + 40) * 768 + 2 * layers * 512 * 7


def test_positions_end_with_the_backbones() -> None:
    spec = spec_of(BertConfig(max_position_embeddings=100))
    method = configured("aprompt", length=0, kv_length=0, qk_width=1)
    assert method.parameter_count(sites_of(method, spec), spec).deployed == 12 * 2 * 100


def by_layers(model: PreTrainedModel, module: Any, mask: Tensor, states: Tensor) -> Tensor:
    """BERT on [P; Z] in each layer, whatever acts inside of the layers."""
    hide = torch.zeros(len(mask), 1, 1, 2 + mask.shape[1])
    hide[:, 0, 0, 2:] = (1 - mask).float() * torch.finfo(torch.float32).min
    for i, layer in enumerate(base_model_of(model).encoder.layer):
        if i:
            rows = module.inputs[f"encoder-{i}-layer"].expand(len(mask), -1, -1)
            states = torch.cat([rows, states[:, 2:]], dim=1)
        states = layer(states, hide.expand(-1, -1, 2 + mask.shape[1], -1))
    return states[:, 2:]


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_query_key_prompts_it_is_deep_prompts_and_prefix_tuning(attention: str, prefix: int) -> None:
    model, module, hybrid = attached("bert", attention=attention, qk_width=0, kv_length=prefix)
    inputs = tiny_inputs("bert", pad=2)
    inputs["attention_mask"][0, 5:] = 0
    mask = inputs["attention_mask"]
    lengths: list[int] = []
    base = base_model_of(model)
    handles = [
        layer.intermediate.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
        for layer in base.encoder.layer
    ]
    ours = base(**inputs).last_hidden_state
    assert lengths == [9 + 2] * 3, "each FFN reads n + l rows"
    for handle in handles:
        handle.remove()
    (table,) = (own.table for own in module.first.children_by_site())
    words = torch.cat([table.expand(2, -1, -1), model.get_input_embeddings()(inputs["input_ids"])], dim=1)
    hybrid.detach()
    if prefix:
        made = Recipe.from_dict({"layers": [{"attach": [{"p_tuning_v2": {"length": 3, "dropout": 0.0}}]}]})
        other: Any = attach(model, made, seed=0).modules["p_tuning_v2"]
        with torch.no_grad():
            for key, rows in module.prefixes.at.items():
                other.at[key].rows.copy_(rows.rows)
    states = base.embeddings(inputs_embeds=words)
    expected = by_layers(model, module, mask, states)
    real = mask.bool()
    torch.testing.assert_close(ours[real], expected[real], atol=1e-5, rtol=1e-5)


def test_the_first_prompt_alone_is_prompt_tuning() -> None:
    for name in ("bert", "gpt2", "vit"):
        model, module, hybrid = attached(name, kv_length=0, qk_width=0, sites=["embeddings"])
        inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
        found = logits(model, inputs)
        hybrid.detach()
        made = Recipe.from_dict({"model": [{"prompt_tuning": {"length": 2}}]})
        other: Any = attach(model, made, seed=0).modules["prompt_tuning"]
        with torch.no_grad():
            other.table.copy_(module.first.children_by_site()[0].table)
        assert torch.equal(logits(model, inputs), found), name


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_what_a_layer_makes_of_its_prompt_is_not_passed_on(name: str) -> None:
    """Text apart, each layer begins with its own rows, to the last bit."""
    model, module, hybrid = attached(name)
    inputs = tiny_inputs(name, pad=0 if name == "vit" else 2)
    seen: dict[str, Tensor] = {}
    for stack in hybrid.injection.layout.stacks:
        for i, path in enumerate(stack.layers):
            layer = hybrid.injection.base.get_submodule(path)
            key = f"{stack.map.name}-{i}-layer"

            def watch(_: Any, args: Any, kwargs: Any, key: str = key) -> None:
                seen[key] = args[0] if args else kwargs["hidden_states"]

            layer.register_forward_pre_hook(watch, with_kwargs=True)
    logits(model, inputs)
    stacks = len(hybrid.spec.stacks)
    assert len(module.inputs) == 2 * stacks
    for key, rows in module.inputs.items():
        found = seen[key][:, -2:] if name == "vit" else seen[key][:, :2]
        assert torch.equal(found, rows.expand(2, -1, -1)), key


def test_query_key_prompts_that_are_zero_leave_the_scores() -> None:
    model, module, hybrid = attached("bert")
    inputs = tiny_inputs("bert", pad=2)
    moved = logits(model, inputs)
    with torch.no_grad():
        for term in module.terms.children_by_site():
            term.keys.zero_()
    zeroed = logits(model, inputs)
    zeroed.pow(2).sum().backward()
    for term in module.terms.children_by_site():
        assert not term.queries.grad.any()
        assert term.keys.grad.any()
    state = {k: v for k, v in module.state_dict().items() if not k.startswith("terms.")}
    hybrid.detach()
    without = attach(model, recipe(qk_width=0), seed=0)
    without.modules["aprompt"].load_state_dict(state)
    torch.testing.assert_close(logits(model, inputs), zeroed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(moved, zeroed, atol=1e-3)


def test_queries_get_a_gradient_once_keys_have_moved() -> None:
    model, module, _ = attached("bert")
    logits(model, tiny_inputs("bert")).pow(2).sum().backward()
    first, *_, last = module.terms.children_by_site()
    assert first.queries.grad[:7].abs().sum(1).gt(0).all()
    assert not first.queries.grad[7:].any(), "no token stands there"
    assert last.queries.grad[0].any(), "the head reads one query"
    assert not last.queries.grad[1:].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "scale"), [("bert", 8**-0.5), ("llama", 8**-0.5), ("t5", 1.0)])
def test_the_term_of_the_scores(name: str, scale: float, attention: str) -> None:
    """(Q·Kᵀ + P_q·P_qkᵀ)·s, as a mask that is added says it; all layers with the same prompts."""
    model, module, hybrid = attached(name, attention=attention, length=0, kv_length=0)
    with torch.no_grad():
        first, *others = module.terms.children_by_site()
        for other in others:
            other.load_state_dict(first.state_dict())
    ids = tiny_inputs(name)["input_ids"]
    stack = model.encoder if name == "t5" else base_model_of(model)
    got = stack(ids)[0]
    term = (first.queries[:7] @ first.keys[:7].T * scale).detach()
    hybrid.detach()
    if name == "llama":
        hidden = ~torch.ones(7, 7, dtype=torch.bool).tril()
        term = term.masked_fill(hidden, torch.finfo(torch.float32).min)
    expected = stack(ids, attention_mask=term.expand(2, 1, -1, -1))[0]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(got, stack(ids)[0], atol=1e-2)


def test_tokens_behind_the_last_position_have_no_query_key_prompts() -> None:
    model, module, _ = attached("bert", positions=4, length=0, kv_length=0)
    logits(model, tiny_inputs("bert")).pow(2).sum().backward()
    (term, *_) = module.terms.children_by_site()
    assert term.queries.shape == (4, 4)
    places = torch.tensor([[-1, 0, 3, 4, 9]])
    rows = term.of(term.queries, places)[0]
    assert torch.equal(rows[1], term.queries[0])
    assert torch.equal(rows[2], term.queries[3])
    assert not rows[[0, 3, 4]].any()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_both_stacks_have_all_prompts(name: str) -> None:
    model, _, hybrid = attached(name)
    found = {(s.stack, s.layer, s.name) for s in hybrid.graph.sites()}
    for stack in ("encoder", "decoder"):
        assert {(stack, None, "embeddings"), (stack, 1, "layer"), (stack, 0, "attention")} <= found
        assert (stack, 0, "layer") not in found
    output = model(**tiny_inputs(name), output_hidden_states=True)
    assert {h.shape[1] for h in output.decoder_hidden_states} == {5}
    assert output.logits.shape[1] == 5


@pytest.mark.parametrize(
    ("config", "ways", "parts"),
    [
        ({}, {"prompt", "kv", "scores"}, ("input", "key_value", "query_key")),
        ({"length": 0}, {"kv", "scores"}, ("key_value", "query_key")),
        ({"kv_length": 0, "qk_width": 0}, {"prompt"}, ("input",)),
        ({"length": 0, "kv_length": 0}, {"scores"}, ("query_key",)),
    ],
)
def test_groups_of_size_zero_are_left_out(config: Any, ways: set[str], parts: tuple[str, ...]) -> None:
    model, module, hybrid = attached("bert", **config)
    entry = hybrid.graph.entries["aprompt"]
    assert entry.ways == ways
    assert entry.traits.changes_length == ("prompt" in ways)
    assert tuple(module.parts()) == entry.method.part_names == parts
    assert hybrid.counts().deployed == sum(p.numel() for p in module.parameters())
    logits(model, tiny_inputs("bert", pad=2))


def test_words_of_the_vocabulary_may_be_the_first_prompt() -> None:
    model = tiny_model("bert")
    module: Any = attach(model, recipe(init="vocabulary"), seed=0).modules["aprompt"]
    (table,) = (own.table for own in module.first.children_by_site())
    words = model.get_input_embeddings().weight
    assert all(bool((words == row).all(1).any()) for row in table)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="give one of them"):
        configured("aprompt", length=0, kv_length=0, qk_width=0)
    with pytest.raises(MethodError, match="site 'embeddings', which"):
        attach(tiny_model("bert"), recipe(sites=["layer", "attention"]))
    with pytest.raises(MethodError, match="does not have"):
        attach(tiny_model("vit"), recipe(init="vocabulary"))
    with pytest.raises(MethodError, match="site 'embeddings' of its encoder"):
        attach(tiny_model("whisper"), recipe())  # which reads sound: no rows enter there
    with attach(tiny_model("whisper"), recipe(length=0)):
        pass


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_last_layer_for_the_read_position_alone(name: str) -> None:
    hybrid = attach(with_rows(name), recipe(), seed=0)
    randomise(hybrid.root, std=0.5)
    batch = encoded_rows(name).collate(list(range(6)))
    stack = hybrid.injection.layout.stacks[-1]
    rows = ReadRows(hybrid.injection.base, stack, "first" if name == "bert" else "last", lambda: [Slot(2)])
    expected = logits_of(hybrid.model, batch)
    with rows.of(batch["attention_mask"]):
        torch.testing.assert_close(logits_of(hybrid.model, batch), expected, atol=1e-5, rtol=1e-5)


def test_prompts_of_full_precision_on_a_backbone_of_half() -> None:
    """Whatever the layer below has made of its prompt, small rows are not lost in what is large."""
    model = tiny_model("bert").to(torch.bfloat16)
    module: Any = attach(model, recipe(), seed=0).modules["aprompt"].float()
    base, seen = base_model_of(model), []
    for layer in base.encoder.layer:
        layer.register_forward_hook(lambda _, __, out: out * 1000.0)
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(model, tiny_inputs("bert")).float().pow(2).sum().backward()
    for i, states in enumerate(seen[1:], start=1):
        rows = module.inputs[f"encoder-{i}-layer"].to(torch.bfloat16)
        assert torch.equal(states[:, :2], rows.expand(2, -1, -1))
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}

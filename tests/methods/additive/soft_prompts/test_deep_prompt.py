from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.dropped import assert_dropped
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from support.toy import configured, sites_of
from torch import Tensor
from transformers import PreTrainedModel, ViTConfig

from autopeft.backbones import base_model_of, spec_of
from autopeft.errors import UsageError
from autopeft.hybrid import Hybrid, attach
from autopeft.hybrid.caching import generates_from_cache
from autopeft.injection.depth import trunk_depths
from autopeft.method import Call, Context
from autopeft.recipe import Recipe

ROWS = 3
OTHERS = {
    "tokens": {"p_tuning": {"length": 2, "slots": [{"length": 2, "offset": 1}], "encoder": "mlp"}},
    "late": {"lpt": {"length": 2, "layer": 1, "generator": "none", "dropout": 0.0}},
    "renewed": {"aprompt": {"length": 2, "kv_length": 0, "qk_width": 2}},
}


def recipe(*others: Any, at: Any = "all", **config: Any) -> Recipe:
    item = {"deep_prompt": {"length": ROWS, **config}}
    return Recipe.from_dict({"layers": [{"at": at, "attach": [item]}], "model": list(others)})


def attached(
    name: str, *others: Any, attention: str = "sdpa", **kwargs: Any
) -> tuple[PreTrainedModel, Hybrid]:
    model = tiny_model(name, attention=attention)
    hybrid = attach(model, recipe(*others, **kwargs), seed=0)
    randomise(hybrid.root, std=0.5)
    return model, hybrid


def test_counts_are_those_of_vpt_and_noah() -> None:
    """VPT-deep of 5 prompts on ViT-B/16, and NOAH's widest table, of 10 in each of the 12 layers."""
    spec = spec_of(ViTConfig())
    for length, expected in ((5, 12 * 5 * 768), (10, 12 * 10 * 768)):
        method = configured("deep_prompt", length=length)
        assert method.parameter_count(sites_of(method, spec), spec).deployed == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["bert", "vit", "gpt2"])
def test_it_computes_the_papers_formula(name: str, attention: str) -> None:
    """[_, H⁽ⁱ⁾] = Lᵢ([P⁽ⁱ⁾, H⁽ⁱ⁻¹⁾]): each layer has its own rows, and what it makes of them is lost."""
    model, hybrid = attached(name, attention=attention)
    rows: dict[str, Tensor] = dict(hybrid.modules["deep_prompt"].rows.items())
    lengths: list[int] = []
    layers = [model.base_model.get_submodule(path) for path in hybrid.injection.layout.stacks[0].layers]
    for layer in layers:
        layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    inputs = tiny_inputs(name)
    ours = model.base_model(**inputs).last_hidden_state
    assert lengths == [ours.shape[1] + ROWS] * len(layers)
    hybrid.detach()
    base: Any = base_model_of(model)
    if name == "gpt2":
        places = torch.arange(ours.shape[1])
        states = base.wte(inputs["input_ids"]) + base.wpe(places)
    else:
        states = base.embeddings(next(iter(inputs.values())))
    total = ours.shape[1] + ROWS
    causal = torch.full((total, total), torch.finfo(torch.float32).min).triu(1)[None, None]
    mask = {"attention_mask": causal} if name == "gpt2" else {}
    for layer, own in zip(layers, rows.values(), strict=True):
        longer = torch.cat([own.expand(len(states), -1, -1), states], dim=1)
        output = layer(longer, **mask)
        states = (output[0] if isinstance(output, tuple) else output)[:, ROWS:]
    norm = {"vit": "layernorm", "gpt2": "ln_f"}.get(name)
    states = states if norm is None else getattr(base, norm)(states)
    torch.testing.assert_close(ours, states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", [None, *OTHERS])
@pytest.mark.parametrize("name", ["bert", "mpnet", "t5", "gpt2", "llama"])
def test_padding_says_nothing_beside_rows_of_others(name: str, other: str | None) -> None:
    model, _ = attached(name, *([] if other is None else [OTHERS[other]]))
    bare = logits(model, tiny_inputs(name), length=7)
    padded = logits(model, tiny_inputs(name, pad=4), length=7)
    torch.testing.assert_close(padded, bare, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("other", OTHERS)
def test_layers_below_read_what_they_read_without_them(other: str) -> None:
    """Beside rows of others, which stay in the sequence."""
    model = tiny_model("bert")
    body = {"model": [OTHERS[other]]}
    states = []
    for layers in ([], [{"at": "last 1", "attach": [{"deep_prompt": {"length": ROWS}}]}]):
        with attach(model, Recipe.from_dict({**body, "layers": layers}), seed=0) as hybrid:
            theirs = hybrid.modules[next(iter(OTHERS[other]))]
            torch.nn.utils.vector_to_parameters(torch.linspace(-1, 1, 20_000), theirs.parameters())
            output = model(**tiny_inputs("bert"), output_hidden_states=True)
            states.append(output.hidden_states)
    plain, beside = states
    for before, after in zip(plain[:-1], beside[:-1], strict=True):
        torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(plain[-1], beside[-1])


@pytest.mark.parametrize("captured", ["before it is attached", "afterwards"])
@pytest.mark.parametrize("other", [None, "tokens", "late"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_all_hidden_states_are_those_of_the_text(name: str, other: str | None, captured: str) -> None:
    """transformers records them by hooks on the layers, which see rows where they were there before ours."""
    if name == "vit" and other == "tokens":
        other = None
    model = tiny_model(name)
    plain = model(**tiny_inputs(name), output_hidden_states=True) if captured.startswith("before") else None
    hybrid = attach(model, recipe(*([] if other is None else [OTHERS[other]])), seed=0)
    randomise(hybrid.root, std=0.5)
    states = model(**tiny_inputs(name), output_hidden_states=True).hidden_states
    assert len({h.shape for h in states}) == 1
    if plain is not None and other != "tokens":
        torch.testing.assert_close(states[0], plain.hidden_states[0])


def test_layers_below_stay_untouched() -> None:
    model, hybrid = attached("bert", at="last 1")
    assert trunk_depths(hybrid.injection) == {"encoder": 2}
    seen: list[Tensor] = []
    base_model_of(model).encoder.layer[1].register_forward_hook(lambda _, __, out: seen.append(out))
    logits(model, tiny_inputs("bert")).sum().backward()
    first = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert not first.requires_grad


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoder_reads_them_behind_padding_on_the_left(name: str) -> None:
    model, _ = attached(name)
    inputs = tiny_inputs(name)
    alone = model(**{k: v[:, 2:] for k, v in inputs.items()}).logits
    inputs["attention_mask"][:, :2] = 0
    padded = model(**inputs).logits[:, 2:]
    if name == "gpt2":  # its positions are the caller's affair
        places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        padded = model(**inputs, position_ids=places).logits[:, 2:]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decoder_writes_without_a_cache(name: str) -> None:
    model, _ = attached(name)
    assert not generates_from_cache(model, 3)
    kwargs = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(UsageError, match="use_cache=False"):
        model.generate(**tiny_inputs(name), **kwargs, use_cache=True)
    written = model.generate(**tiny_inputs(name), **kwargs, use_cache=False)
    logits_of_all = model(input_ids=written[:, :-1]).logits
    assert torch.equal(logits_of_all[:, 6:].argmax(-1), written[:, 7:])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_behind_an_encoder_a_decoder_keeps_its_cache(name: str) -> None:
    """And attends to the text alone."""
    model, hybrid = attached(name)
    assert {site.stack for site in hybrid.graph.sites()} == {"encoder"}
    assert generates_from_cache(model, 3)
    output = model(**tiny_inputs(name))
    assert output.encoder_last_hidden_state.shape[1] == 7
    inputs = {k: v for k, v in tiny_inputs(name, pad=2).items() if k != "decoder_input_ids"}
    kept, plain = (
        model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=cached)
        for cached in (True, False)
    )
    assert torch.equal(kept, plain)


def test_t5s_first_layer_hands_on_the_distances_of_the_text() -> None:
    """The bias that it makes, which the layers above read, is longer by its rows."""
    model, hybrid = attached("t5", at=0)
    (rows,) = hybrid.modules["deep_prompt"].rows.values()
    encoder: Any = base_model_of(model).encoder
    ids = tiny_inputs("t5")["input_ids"]
    ours = encoder(input_ids=ids).last_hidden_state
    hybrid.detach()
    states = torch.cat([rows.expand(len(ids), -1, -1), encoder.embed_tokens(ids)], dim=1)
    states, bias, *_ = encoder.block[0](states)
    states, bias = states[:, ROWS:], bias[..., ROWS:, ROWS:]
    for block in encoder.block[1:]:
        states = block(states, position_bias=bias)[0]
    torch.testing.assert_close(ours, encoder.final_layer_norm(states), atol=1e-5, rtol=1e-5)


def test_t5s_first_layer_counts_distances_so_that_padding_goes_behind_the_text() -> None:
    inputs = tiny_inputs("t5")
    inputs["attention_mask"][0, :2] = 0
    with pytest.raises(UsageError, match="on the right"):
        logits(attached("t5")[0], inputs)
    logits(attached("t5", at="last 1")[0], inputs)


def test_rows_start_as_noahs_do() -> None:
    hybrid = attach(tiny_model("bert"), recipe(length=400), seed=0)
    bound = math.sqrt(6 / (101 * 32))
    for rows in hybrid.modules["deep_prompt"].rows.values():
        assert 0.98 * bound < float(rows.detach().abs().max()) <= bound


def test_dropout_acts_on_the_rows_while_they_train() -> None:
    _, hybrid = attached("bert", dropout=0.25)
    module: Any = hybrid.modules["deep_prompt"]
    site, *_ = hybrid.graph.sites()
    states, call = torch.randn(400, 9, 32), Call(Context())
    expected = module.rows[site.key].expand(400, -1, -1)
    assert torch.equal(module.eval().prompt(site, states, call), expected)
    found = module.train().prompt(site, states, call)
    assert_dropped(found, expected, 0.25)
    assert not torch.equal(found[0] == 0, found[1] == 0)

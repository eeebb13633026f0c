"""Maps of decoders, held against what the models themselves compute.

Nothing here reads a map to know what is right: weights are found by hand, regions by the states that go
through the layer, and which features of a fused projection are queries, keys or values by what noise does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from contract.pairs import WAYS
from support.cases import recipe_of
from support.families import FAMILIES
from support.families.decoders import DECODERS
from support.tiny import ARCHITECTURES, logits, randomise, tiny_config, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.backbones import Place, base_model_of, layout_of, spec_of, spec_of_model
from autopeft.counting import count
from autopeft.errors import SiteError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.recipe import Recipe

# A family, or kin of it that another option of its config makes.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in DECODERS if name not in ARCHITECTURES},
    "gpt_neox in turn": ("gpt_neox", {"use_parallel_residual": False}),
    "opt norms behind": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "falcon by head": ("falcon", {"multi_query": False}),
    "falcon in turn": ("falcon", {"parallel_attn": False}),
    "falcon by group": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon alibi": ("falcon", {"alibi": True, "parallel_attn": False}),
    "stablelm side by side": ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}),
}
BESIDE = (
    "phi",
    "gptj",
    "cohere",
    "gpt_neox",
    "falcon",
    "falcon by head",
    "falcon by group",
    "stablelm side by side",
)
SITES = ("q", "k", "v", "o", "up", "gate_proj", "down")
LAYER = 1


def variant(name: str, **options: Any) -> PreTrainedModel:
    family, own = VARIANTS[name]
    return tiny_model(family, **own, **options)


def inputs_of(name: str, **options: Any) -> dict[str, Tensor]:
    return tiny_inputs(VARIANTS[name][0], **options)


def places_of(model: PreTrainedModel, layer: int = LAYER) -> dict[str, Place]:
    stack = layout_of(base_model_of(model)).stacks[0]
    return {p.site.name: p for p in stack.places if p.site.layer == layer}


# Weights
# ----------------------------------------------------------------------------------------------------------

SEPARATE = {site: (f"self_attn.{site}_proj", None) for site in "qkvo"}
GATED = {site: (f"mlp.{site.removesuffix('_proj')}_proj", None) for site in ("up", "gate_proj", "down")}
FUSED = {"o": ("self_attention.dense", None)}
FOUR_H = {"up": ("mlp.dense_h_to_4h", None), "down": ("mlp.dense_4h_to_h", None)}
Rows = Callable[[int], Tensor]


def by_head(part: int) -> Rows:
    """Rows of a projection of 4 heads of 8 with query, key and value of one after another."""
    return lambda total: torch.arange(total).view(4, 3, 8)[:, part].flatten()


def between(start: int, stop: int) -> Rows:
    return lambda total: torch.arange(total)[start:stop]


def fused(path: str, *rows: Rows) -> dict[str, tuple[str, Rows]]:
    return {site: (path, own) for site, own in zip("qkv", rows, strict=True)}


QKV = "self_attention.query_key_value"
IN_TURN = {**fused(QKV, between(0, 32), between(32, 40), between(40, 48)), **FUSED, **FOUR_H}
BY_HEAD = {**fused(QKV, by_head(0), by_head(1), by_head(2)), **FUSED, **FOUR_H}
BY_GROUP = {  # two groups of two heads, a key and a value
    **fused(
        QKV, *(lambda n, at=at: torch.arange(n).view(2, 4, 8)[:, at].flatten() for at in (slice(0, 2), 2, 3))
    ),
    **FUSED,
    **FOUR_H,
}
NEOX = {
    **fused("attention.query_key_value", by_head(0), by_head(1), by_head(2)),
    "o": ("attention.dense", None),
    **FOUR_H,
}
OPT = {**SEPARATE, "o": ("self_attn.out_proj", None), "up": ("fc1", None), "down": ("fc2", None)}
WEIGHTS: dict[str, dict[str, tuple[str, Rows | None]]] = {
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), SEPARATE),
    **dict.fromkeys(("gpt_neox", "gpt_neox in turn"), NEOX),
    **dict.fromkeys(("falcon", "falcon in turn", "falcon alibi"), IN_TURN),
    **dict.fromkeys(("falcon by head", "bloom"), BY_HEAD),
    "falcon by group": BY_GROUP,
    "phi": {**SEPARATE, "o": ("self_attn.dense", None), "up": ("mlp.fc1", None), "down": ("mlp.fc2", None)},
    "starcoder2": {**SEPARATE, "up": ("mlp.c_fc", None), "down": ("mlp.c_proj", None)},
    "gptj": {
        **{site: (f"attn.{site}_proj", None) for site in "qkv"},
        "o": ("attn.out_proj", None),
        "up": ("mlp.fc_in", None),
        "down": ("mlp.fc_out", None),
    },
    **dict.fromkeys(("opt", "opt norms behind"), OPT),
    "phi3": {
        **fused("self_attn.qkv_proj", between(0, 32), between(32, 48), between(48, 64)),
        "o": ("self_attn.o_proj", None),
        "gate_proj": ("mlp.gate_up_proj", between(0, 64)),
        "up": ("mlp.gate_up_proj", between(64, 128)),
        "down": ("mlp.down_proj", None),
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_lora_is_a_change_of_the_weights_that_are_found_by_hand(name: str) -> None:
    model, by_hand = variant(name), variant(name)
    inputs = inputs_of(name)
    found = WEIGHTS.get(name, {**SEPARATE, **GATED})
    sites = [site for site in SITES if site in found]
    recipe = {"name": "l", "layers": [{"at": [LAYER], "attach": [{"lora": {"rank": 2, "sites": sites}}]}]}
    hybrid = attach(model, Recipe.from_dict(recipe), seed=0)
    randomise(hybrid.root, std=0.3)
    layer = base_model_of(by_hand).get_submodule(layout_of(base_model_of(by_hand)).stacks[0].layers[LAYER])
    module = cast(Any, hybrid.modules["lora"])
    with torch.no_grad():
        for site in hybrid.graph.entries["lora"].sites:
            path, rows = found[site.name]
            a, b, scale = module.as_lora(site)
            weight = cast(Tensor, layer.get_submodule(path).weight)
            at = torch.arange(len(weight)) if rows is None else rows(len(weight))
            weight[at] += float(scale) * (b @ a)
    expected = logits(by_hand, inputs)
    assert {site.name for site in hybrid.graph.entries["lora"].sites} == set(sites)
    torch.testing.assert_close(logits(model, inputs), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits(variant(name), inputs), atol=1e-3)
    merged = logits(hybrid.merge(), inputs)
    torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-4)


@contextmanager
def seen(module: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """What a module reads."""
    handle = module.register_forward_pre_hook(
        lambda m, args, kwargs: kept.append((args[0] if args else kwargs["hidden_states"]).detach()),
        with_kwargs=True,
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", VARIANTS)
def test_noise_in_one_token_tells_queries_from_keys_and_values(name: str) -> None:
    """Of a query one position hears; of a key or value those behind it too, and of a value in proportion."""
    model, inputs, token = variant(name), inputs_of(name, length=4), 1
    base, places = base_model_of(model), places_of(model)

    def attended(site: str, factor: float) -> Tensor:
        place, kept = places[site], cast(list[Tensor], [])
        noise = torch.randn(place.site.out_features, generator=torch.Generator().manual_seed(5)) * factor

        def disturb(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            if place.out_slice is None:
                output[:, token] += noise
            else:
                output[:, token] += place.out_slice.spread(noise, output.shape[-1])
            return output

        handle = base.get_submodule(place.exit).register_forward_hook(disturb)
        with seen(base.get_submodule(places["o"].exit), kept), torch.no_grad():
            model(**inputs)
        handle.remove()
        return kept[0]

    plain = attended("q", 0.0)
    changed = {site: attended(site, 1.0) - plain for site in "qkv"}
    heard = {site: (change.abs().amax((0, 2)) > 1e-6).tolist() for site, change in changed.items()}
    assert heard["q"] == [False, True, False, False]
    assert heard["k"][0] is heard["v"][0] is False
    assert any(heard["k"][2:])
    assert heard["v"][1:] == [True, True, True]
    back = {site: attended(site, -1.0) - plain for site in "qkv"}
    torch.testing.assert_close(back["v"], -changed["v"], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(back["k"], -changed["k"], atol=1e-4)


# Regions
# ----------------------------------------------------------------------------------------------------------


def states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """x and y of the regions of a layer, as its modules hand them on."""
    base, found = base_model_of(model), cast(dict[str, list[Tensor]], {})
    handles = []

    def keep(name: str, end: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, *output: Any) -> None:
            value = (args[0] if args else kwargs["hidden_states"]) if end == 0 else output[0]
            value = value[0] if isinstance(value, tuple) else value
            found.setdefault(name, [value, value])[end] = value.detach().clone()

        return hook

    for name in ("layer", "attention", "ffn"):
        place = places_of(model)[name]
        entry, exit_ = base.get_submodule(place.entry), base.get_submodule(place.exit)
        handles.append(entry.register_forward_pre_hook(keep(name, 0), with_kwargs=True))
        handles.append(exit_.register_forward_hook(keep(name, 1), with_kwargs=True))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return {name: (x, y) for name, (x, y) in found.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_regions_and_residuals_make_the_layer(name: str) -> None:
    model = variant(name)
    base, places = base_model_of(model), places_of(model)
    found = states(model, inputs_of(name))
    start, end = found["layer"]
    stream = start
    for region in ("attention", "ffn"):
        place, (x, y) = places[region], (t.view(start.shape) for t in found[region])
        norm = None if place.norm is None else base.get_submodule(place.norm)
        reads = start if name in BESIDE else stream
        with torch.no_grad():
            if place.site.pre_norm:
                assert norm is not None
                torch.testing.assert_close(x, norm(reads))
            else:
                torch.testing.assert_close(x, reads)
            stream = stream + place.site.multiplier * y
            if place.site.pre_norm is False and norm is not None:
                stream = norm(stream)
    torch.testing.assert_close(stream, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_adapter_behind_an_ffn_reads_the_stream(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = variant(name)
    places, found = places_of(bare), states(bare, inputs_of(name))
    start = found["layer"][0]
    attended, y = (found[region][1].view(start.shape) for region in ("attention", "ffn"))
    scale, stream = places["ffn"].site.multiplier, start
    if name not in BESIDE:
        stream = start + scale * attended
        norm = places["attention"].norm
        if norm is not None and not places["attention"].site.pre_norm:
            stream = base_model_of(bare).get_submodule(norm)(stream)
    expected = stream + scale * y
    if not places["ffn"].site.pre_norm and places["ffn"].norm is not None:
        expected = base_model_of(bare).get_submodule(places["ffn"].norm)(expected)
    model = variant(name)
    adapter = {"name": "a", "layers": [{"at": [LAYER], "attach": [{"serial_adapter": {"bottleneck": 2}}]}]}
    module = cast(Any, attach(model, Recipe.from_dict(adapter), seed=0).modules["serial_adapter"])
    read: list[Tensor] = []
    plain = module.reads

    def reads(*args: Any) -> Tensor:
        read.append(plain(*args))
        return read[-1]

    monkeypatch.setattr(module, "reads", reads)
    model(**inputs_of(name))
    (got,) = read
    torch.testing.assert_close(got.view(expected.shape), expected, atol=1e-5, rtol=1e-5)


# Counts
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_alone_tells_what_the_model_has(name: str) -> None:
    model = variant(name)
    config = model.config
    told, (live, _) = spec_of(config), spec_of_model(model)
    assert told == live
    assert told.logits == live.logits
    assert not told.generic
    assert told.parameters == sum(p.numel() for p in base_model_of(model).parameters())
    refused = {*FAMILIES[VARIANTS[name][0]].refuses, *(("lpt", "prefix") if "alibi" in name else ())}
    for case in (case for case in WAYS if case not in refused):
        graph = build_graph(recipe_of(case), told)
        hybrid = attach(variant(name), recipe_of(case), seed=0)
        assert count(graph, told).trained == sum(p.numel() for p in hybrid.root.parameters())


def test_experts_have_no_linear_sites_and_the_message_says_why() -> None:
    with pytest.raises(SiteError, match=r"no site 'up'.*mixture of experts.*'ffn'"):
        spec_of(tiny_config("mixtral")).require_name("up")
    layers = {s.layer for s in spec_of(tiny_config("qwen3_moe")).sites if s.name == "up"}
    assert layers == {1}, "the layer that is no mixture has one"


def test_bloom_that_computes_past_its_maps_is_refused() -> None:
    config = tiny_config("bloom")
    config.slow_but_exact, config.pretraining_tp = True, 2
    with pytest.raises(SiteError, match="slow_but_exact"):
        spec_of(config)

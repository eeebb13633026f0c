"""Sites of families by map are where their map says, as the models' own forwards show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.families import ENCODER_DECODERS, ENCODERS, FAMILIES, VISION
from support.tiny import logits, randomise, tiny_config, tiny_inputs, tiny_model
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForSequenceClassification
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.backbones import Place, StackPlaces, base_model_of, layout_of, spec_of, spec_of_model
from autopeft.counting import count
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.injection.weights import owners_of
from autopeft.recipe import Recipe
from autopeft.spec import LINEAR_SITES

NAMES = (*ENCODERS, *ENCODER_DECODERS, *VISION)
RECORDING = "recording"  # holds neither "sdpa" nor "flash"
INSIDE = {"attention": ("q", "k", "v", "qkv", "o"), "ffn": ("up", "gate_proj", "down")}
INSIDE["cross_attention"] = tuple(f"cross_{site}" for site in ("q", "k", "v", "o"))


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_tests_are_alike_and_share_no_tensor(name: str) -> None:
    one, other = tiny_model(name), tiny_model(name)
    expected = one.state_dict()
    assert all(torch.equal(expected[key], value) for key, value in other.state_dict().items())
    owned = [{t.data_ptr() for t in (*m.parameters(), *m.buffers()) if t.numel()} for m in (one, other)]
    assert not owned[0] & owned[1]
    words, written = one.get_input_embeddings(), one.get_output_embeddings()
    if written is not None and one.config.get_text_config().tie_word_embeddings:
        assert written.weight is words.weight


def _first(value: Any) -> Tensor:
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


@contextmanager
def _watched(base: nn.Module, paths: set[str]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """What goes into these modules of a base model and comes out of them, call after call."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            seen[path].append((x.detach().clone(), _first(output).detach().clone()))

        return hook

    handles = [
        base.get_submodule(path).register_forward_hook(watch(path), with_kwargs=True) for path in paths
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _regions(stack: StackPlaces, layer: int) -> list[Place]:
    found = {p.site.name: p for p in stack.places if p.site.layer == layer and p.site.kind == "region"}
    return [found[name] for name in ("attention", "cross_attention", "ffn") if name in found]


@pytest.mark.parametrize("name", NAMES)
def test_regions_and_residuals_make_what_a_layer_yields(name: str) -> None:
    """x at a region's entry, y at its exit, the residual stream and the norm, in the order that is said."""
    model = tiny_model(name)
    base = base_model_of(model)
    for stack in layout_of(base).stacks:
        places = [p for i in range(len(stack.layers)) for p in _regions(stack, i)]
        paths = {path for p in places for path in (p.entry, p.exit, p.norm) if path} | set(stack.layers)
        with _watched(base, paths) as seen, torch.no_grad():
            model(**tiny_inputs(name))
        assert all(len(seen[layer]) == stack.runs for layer in stack.layers)
        for index, layer in enumerate(stack.layers):
            for run, (stream, output) in enumerate(seen[layer]):
                for place in _regions(stack, index):
                    assert place.norm is not None
                    x, y = seen[place.entry][run][0], seen[place.exit][run][1]
                    norm_x, norm_y = seen[place.norm][run]
                    assert torch.equal(x, norm_y if place.site.pre_norm else stream)
                    assert torch.allclose(norm_x, stream if place.site.pre_norm else stream + y, atol=1e-6)
                    stream = stream + y if place.site.pre_norm else norm_y
                torch.testing.assert_close(output, stream, atol=1e-6, rtol=1e-6)


@contextmanager
def _recorded() -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """Queries, keys and values of each attention that calls the function of this name."""
    seen: dict[nn.Module, tuple[Tensor, ...]] = {}

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        seen[module] = (query.clone(), key.clone(), value.clone())
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, *args, **kwargs)

    AttentionInterface.register(RECORDING, attend)
    AttentionMaskInterface.register(RECORDING, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield seen


DISPATCHING = tuple(name for name in NAMES if "sdpa" in FAMILIES[name].attentions)


@pytest.mark.parametrize("name", DISPATCHING)
def test_what_is_called_queries_keys_and_values_are_these(name: str) -> None:
    model = tiny_model(name)
    base, inputs = base_model_of(model), tiny_inputs(name)
    for config in {id(m.config): m.config for m in base.modules() if hasattr(m, "config")}.values():
        config._attn_implementation = RECORDING
    for stack in layout_of(base).stacks:
        last = len(stack.layers) - 1
        for region in (p for p in _regions(stack, last) if p.attends):
            dash = "cross_" if region.site.name == "cross_attention" else ""
            changed = {}
            for site in ("q", "k", "v"):
                (place,) = (p for p in stack.places if p.site.layer == last and p.site.name == dash + site)
                with _recorded() as seen, torch.no_grad():
                    model(**inputs)
                    before = seen[base.get_submodule(region.entry)]
                    with _altered(base, place):
                        model(**inputs)
                    after = seen[base.get_submodule(region.entry)]
                changed[site] = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            if stack.runs == 1:  # else each run reads what the one before has made
                assert changed == {
                    "q": [True, False, False],
                    "k": [False, True, False],
                    "v": [False, False, True],
                }


@contextmanager
def _altered(base: nn.Module, place: Place) -> Iterator[None]:
    """Within, the weights of a linear site are others."""
    weight: Any = base.get_submodule(place.exit).weight
    kept, rows = weight.detach().clone(), weight.t() if place.transposed else weight
    part = rows if place.out_slice is None else place.out_slice.of(rows, 0)
    with torch.no_grad():
        part.add_(0.3)
    yield
    with torch.no_grad():
        weight.copy_(kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_site_acts_in_its_own_region_alone(name: str) -> None:
    model = tiny_model(name)
    base, inputs = base_model_of(model), tiny_inputs(name)
    for stack in layout_of(base).stacks:
        last = len(stack.layers) - 1
        regions = _regions(stack, last)
        order = [p.site.name for p in regions]
        exits = {p.exit for p in regions}
        with _watched(base, exits) as seen, torch.no_grad():
            model(**inputs)
            plain = {path: calls[0][1] for path, calls in seen.items()}
        for place in (p for p in stack.places if p.site.layer == last and p.site.kind == "linear"):
            home = next(r for r, sites in INSIDE.items() if place.site.name in sites)
            with _watched(base, exits) as seen, torch.no_grad(), _altered(base, place):
                model(**inputs)
            same = [torch.equal(seen[p.exit][0][1], plain[p.exit]) for p in regions]
            first = order.index(home)
            assert same[:first] == [True] * first, place.site.path
            assert not same[first], place.site.path


@pytest.mark.parametrize("name", NAMES)
def test_lora_adds_the_product_of_its_factors_to_the_weights(name: str) -> None:
    model, inputs = tiny_model(name), tiny_inputs(name, pad=2)
    have = spec_of(tiny_config(name)).site_names()
    sites = [site for site in LINEAR_SITES if site in have and not (site == "qkv" and "q" in have)]
    item = {"lora": {"rank": 2, "alpha": 6, "sites": sites}}
    hybrid = attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0)
    randomise(hybrid.root)
    expected = logits(model, inputs)
    factors = {
        key.removesuffix(".A").rpartition(".")[2]: (a, dict(hybrid.root.named_parameters())[f"{key[:-1]}B"])
        for key, a in hybrid.root.named_parameters()
        if key.endswith(".A")
    }
    places = {p.site.key: p for p in layout_of(base_model_of(model)).places()}
    assert {places[key].site.name for key in factors} == set(sites)
    by_hand = tiny_model(name)
    with torch.no_grad():
        for key, (a, b) in factors.items():
            place = places[key]
            weight: Any = base_model_of(by_hand).get_submodule(place.exit).weight
            whole = weight.t() if place.transposed else weight
            change = 6 / 2 * b @ a
            whole += change if place.out_slice is None else place.out_slice.spread(change.t(), len(whole)).t()
    torch.testing.assert_close(logits(by_hand, inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_tells_what_the_model_has(name: str) -> None:
    """Sites, tensors and counts, and those of the class with a head where the family has one."""
    model, config = tiny_model(name), tiny_config(name)
    live, _ = spec_of_model(model)
    spec = spec_of(config)
    if type(config) in AutoModelForSequenceClassification._model_mapping:
        spec = spec_of(config, AutoModelForSequenceClassification)
        assert spec.sites == spec_of(config).sites
    assert (spec.sites, spec.stacks, spec.parameters) == (live.sites, live.stacks, live.parameters)
    assert not spec.generic
    items = [{"serial_adapter": {"bottleneck": 4}}, {"lora": {"sites": ["down"], "rank": 2}}]
    for level in ({"layers": [{"attach": items}]}, {"model": [{"pafi": {"keep": "2%"}}]}):
        recipe = Recipe.from_dict(level)
        foreseen = count(build_graph(recipe, spec), spec)
        with attach(tiny_model(name), recipe, seed=0) as hybrid:
            assert hybrid.counts().deployed == foreseen.deployed


@pytest.mark.parametrize("name", [name for name in ENCODER_DECODERS if name != "whisper"])
def test_a_root_scales_the_embeddings_that_it_looks_up_alone(name: str) -> None:
    base, ids = base_model_of(tiny_model(name)), torch.arange(3, 17).view(2, 7)
    for stack in layout_of(base).stacks:
        root, table = (base.get_submodule(str(p)) for p in (stack.map.root, stack.map.embeddings))
        by_ids, given = root(input_ids=ids), root(inputs_embeds=table(ids))
        same = torch.allclose(by_ids.last_hidden_state, given.last_hidden_state, atol=1e-6)
        assert same is not stack.map.scales, stack.map.name


@pytest.mark.parametrize("name", NAMES)
def test_what_may_be_altered_lies_in_modules_that_run(name: str) -> None:
    """Weights are put in their place when a module runs: what is read past it would be altered in vain."""
    model = tiny_model(name)
    base, (spec, _) = base_model_of(model), spec_of_model(model)
    ran: set[nn.Module] = set()
    for module in model.modules():
        module.register_forward_hook(lambda m, args, output: ran.add(m))
    model(**tiny_inputs(name))
    owners = owners_of(model)
    found = {t.name: owners[id(base.get_parameter(t.name))] for t in spec.tensors}
    assert [name for name, held in found.items() if not any(module in ran for module, _ in held)] == []


@pytest.mark.parametrize("name", DISPATCHING)
def test_prefixes_are_the_same_in_either_attention(name: str) -> None:
    found = []
    for attention in ("sdpa", "eager"):
        model = tiny_model(name, attention=attention)
        item = {"prefix_tuning": {"length": 3, "reparameterization": None}}
        randomise(attach(model, Recipe.from_dict({"layers": [{"attach": [item]}]}), seed=0).root)
        found.append(logits(model, tiny_inputs(name, pad=2), length=7))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)

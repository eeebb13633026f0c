"""Rows in front of layers that are made anew there, of a method of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.registries import keep
from support.tiny import logits, randomise, tiny_inputs, tiny_model
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.hybrid import attach
from autopeft.injection.depth import trunk_depths
from autopeft.method import Call, MethodConfig, ParameterCount, Slot, Traits, register
from autopeft.method.registry import REGISTRY
from autopeft.recipe import Recipe
from autopeft.spec import BackboneSpec, Site

ROWS = 3


class Renewed(nn.Module):
    """Zeros at the embeddings; in front of a layer what has become of them, and a vector for each row."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        layers = [site for site in sites if site.layer is not None]
        self.rows = nn.ParameterDict({s.key: nn.Parameter(torch.randn(ROWS, s.in_features)) for s in layers})
        self.first = Slot(ROWS)
        self.there = {site.key for site in sites}

    def slots(self, site: Site) -> Sequence[Slot]:
        if site.key not in self.there:
            return ()
        return (self.first if site.layer is None else Slot(ROWS, renews=True),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        if call.carried is None:
            return x.new_zeros(1, ROWS, x.shape[-1])
        assert call.carried.shape == (len(x), ROWS, x.shape[-1])
        return call.carried + self.rows[site.key]


class RenewedMethod:
    """`prefix_propagation` said in rows."""

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("embeddings", "layer"),
        default_sites=("embeddings", "layer"),
        level="model",
        identity=False,
        gateable=False,
    )
    Config = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        return tuple(site for site in sites if site.stack == spec.stacks[0].name)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(ROWS * site.in_features for site in sites if site.layer is not None)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Renewed(sites)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(monkeypatch, REGISTRY)
    register("renewed")(RenewedMethod)


def recipe(*items: Any) -> Recipe:
    return Recipe.from_dict({"autopeft": 2, "name": "r", "model": list(items)})


@pytest.mark.parametrize("others", [[], [{"prompt_tuning": {"length": 2}}], [{"lpt": {"length": 2}}]])
@pytest.mark.parametrize("name", ["bert", "mpnet", "t5", "vit"])
def test_making_rows_anew_from_what_they_are_is_adding_to_them(name: str, others: list[Any]) -> None:
    """Beside rows of others, in front of the text and of images behind them."""
    inputs = tiny_inputs(name, pad=2)
    found = []
    for item in ("renewed", {"prefix_propagation": {"length": ROWS, "dropout": 0.0}}):
        model = tiny_model(name)
        hybrid = attach(model, recipe(item, *others), seed=0)
        randomise(hybrid.root, std=0.3)
        with torch.no_grad():
            module: Any = next(iter(hybrid.modules.values()))
            for i, key in enumerate(module.rows):
                rows = module.rows[key]
                rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(i)))
        hybrid.root.eval()
        found.append(logits(model, inputs))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_among_the_tokens_are_found_again(attention: str) -> None:
    model = tiny_model("bert", attention=attention)
    hybrid = attach(model, recipe("renewed"), seed=0)
    module: Any = hybrid.modules["renewed"]
    front = logits(model, tiny_inputs("bert"))
    module.first = replace(module.first, offset=2)
    hybrid.refresh()
    inside = logits(model, tiny_inputs("bert"))
    assert not torch.allclose(inside, front)
    padded = logits(model, tiny_inputs("bert", pad=4))
    torch.testing.assert_close(padded, inside, atol=1e-5, rtol=1e-4)


def test_what_is_settled_while_it_is_attached_acts_with_and_without_new_hooks() -> None:
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hybrid = attach(model, recipe("renewed"), seed=0)
    module: Any = hybrid.modules["renewed"]
    whole, revision = logits(model, inputs), hybrid.injection.revision
    layer = "encoder-1-layer"
    module.there.discard(layer)
    stale = logits(model, inputs)
    assert not torch.allclose(stale, whole)
    hybrid.refresh()
    assert hybrid.injection.revision > revision
    assert {s.key for s in hybrid.injection.sites()} == {s.key for s in hybrid.graph.sites()} - {layer}
    assert torch.equal(logits(model, inputs), stale)
    module.there.clear()
    hybrid.refresh()
    assert trunk_depths(hybrid.injection) == {"encoder": 3}
    assert torch.equal(logits(model, inputs), logits(tiny_model("bert"), inputs))


def test_rows_that_are_not_there_cannot_be_made_anew() -> None:
    model = tiny_model("bert")
    hybrid = attach(model, recipe("renewed"), seed=0)
    module: Any = hybrid.modules["renewed"]
    module.there.discard("encoder-embeddings")
    with pytest.raises(MethodError, match="has none there"):
        logits(model, tiny_inputs("bert"))


def test_one_site_puts_rows_in_or_makes_them_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (Slot(1), Slot(ROWS, renews=True))
    monkeypatch.setattr(Renewed, "slots", lambda self, site: (Slot(ROWS),) if site.layer is None else both)
    with pytest.raises(MethodError, match="do the same"):
        attach(tiny_model("bert"), recipe("renewed"), seed=0)


@pytest.mark.parametrize("region", ["mean_pooling", {"coda": {"bottleneck": 4, "reduction": 2}}])
@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "deberta-v2"])
def test_masks_reach_a_layer_in_whose_place_something_else_stands(name: str, region: Any) -> None:
    """They come by position, and the mask is to hide padding there too."""
    body: dict[str, Any] = {"model": [{"lpt": {"length": 2, "generator": "none", "dropout": 0.0}}]}
    if isinstance(region, str):
        body["model"].append(region)
    else:
        body["layers"] = [{"attach": [region]}]
    model = tiny_model(name)
    randomise(attach(model, Recipe.from_dict(body), seed=0).root)
    padded = logits(model, tiny_inputs(name, pad=4))
    torch.testing.assert_close(padded, logits(model, tiny_inputs(name)), atol=1e-5, rtol=1e-4)


def test_a_layer_gets_arguments_that_have_no_name() -> None:
    model = tiny_model("bert")
    attach(model, recipe({"lpt": {"length": 2, "layer": 1, "generator": "none"}}), seed=0)
    layer: Any = model.base_model.encoder.layer[1]
    inputs = {"input_ids": tiny_inputs("bert")["input_ids"]}
    plain, own, came = logits(model, inputs), layer.forward, []

    def forward(*args: Any, **kwargs: Any) -> Any:
        came.append(len(args))
        return own(*args, **kwargs)

    layer.forward = forward
    assert torch.equal(logits(model, inputs), plain)
    assert came[0] > 1

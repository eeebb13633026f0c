"""Which recipes are measured: what tells a layer's cost, and each method at its smallest and largest."""

from __future__ import annotations

from typing import Any

import pytest
from support.training import tiny_bert

from autopeft.backbones import spec_of_model
from autopeft.recipe import Recipe
from autopeft.resources.probes import Offer, base_probes, method_probes
from autopeft.spec import BackboneSpec


@pytest.fixture(scope="module")
def spec() -> BackboneSpec:
    return spec_of_model(tiny_bert())[0]


def offers(*bodies: dict[str, Any]) -> list[Offer]:
    return [offer for body in bodies for offer in Offer.of(Recipe.from_dict(body))]


def items(probes: list[Recipe]) -> list[Any]:
    bodies = [probe.to_dict() for probe in probes]
    return [
        item
        for b in bodies
        for item in b.get("model", []) + [i for x in b.get("layers", []) for i in x["attach"]]
    ]


def test_the_last_layer_is_measured_with_few_maps_and_with_all(spec: BackboneSpec) -> None:
    last = [p.to_dict() for p in base_probes(spec) if p.layers and p.to_dict()["layers"][0]["at"] == "last 1"]
    few, every = (body["layers"][0]["attach"][0]["lora"] for body in last)
    assert "sites" not in few
    assert every["sites"] == ["q", "k", "v", "o", "up", "down"]
    assert few["rank"] == every["rank"]


def test_each_depth_is_measured_once(spec: BackboneSpec) -> None:
    places = [str(p.to_dict()["layers"][0]["at"]) for p in base_probes(spec) if p.layers]
    assert places.count("last 1") == 2
    inside = [place for place in places if place != "last 1"]
    assert len(inside) == len(set(inside)) >= 1


@pytest.mark.parametrize("whole", [False, True])
def test_a_method_is_measured_at_its_smallest_and_at_its_largest(spec: BackboneSpec, whole: bool) -> None:
    """Of the whole model too: what a mask takes depends on how much it keeps."""
    sized: Any = lambda n: {"fish_mask": {"keep": n}} if whole else {"lora": {"rank": n}}  # noqa: E731
    given = [
        {"model": [sized(n)]} if whole else {"layers": [{"at": "all", "attach": [sized(n)]}]}
        for n in (4, 2, 9)
    ]
    assert items(method_probes(offers(*given), spec)) == [sized(2), sized(9)]
    assert items(method_probes(offers(given[0]), spec)) == [sized(4)], "one size, one probe"


def test_a_composition_is_measured_apart_from_its_children(spec: BackboneSpec) -> None:
    gate = {"gate": [{"lora": {"rank": 2}}, "ia3"]}
    found = items(
        method_probes(offers({"layers": [{"at": "all", "attach": [gate, {"lora": {"rank": 2}}]}]}), spec)
    )
    assert len(found) == 2
    assert gate in found

"""What works on packed weights is known from the graph, and is what attaching refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.quantized import quantised
from support.tiny import tiny_config, tiny_model

from autopeft.backbones import spec_of
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.graph import build_graph, on_packed, on_packed_entries
from autopeft.hybrid import attach
from autopeft.method import method_names
from autopeft.recipe import Recipe

SPEC = spec_of(tiny_config("bert"))


def alone(name: str) -> Recipe | None:
    for place in ({"layers": [{"attach": [name]}]}, {"model": [name]}):
        try:
            recipe = Recipe.from_dict({"name": "r", **place})
            build_graph(recipe, SPEC)
        except AutoPEFTError:
            continue
        return recipe
    return None


@pytest.mark.parametrize("name", method_names())
def test_it_says_what_attaching_finds(name: str) -> None:
    recipe = alone(name)
    if recipe is None:
        pytest.skip("it does not stand alone on this backbone")
    reason = on_packed(build_graph(recipe, SPEC))
    packed = quantised(tiny_model("bert"))
    if reason is None:
        attach(packed, recipe).detach()
    else:
        with pytest.raises(UsageError, match=re.escape(reason)):
            attach(packed, recipe)


def test_each_entry_counts() -> None:
    attached: list[Any] = ["dora", "lora", {"hiwi": {"target": "weight"}}]
    graph = build_graph(Recipe.from_dict({"name": "r", "layers": [{"attach": attached}]}), SPEC)
    assert on_packed_entries(graph) == 2
    assert on_packed(graph) == "dora, hiwi would work on its packed weights"

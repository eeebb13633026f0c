"""Hashes are written into run folders, journals and kept baselines: those of files of format 1 stay.

`recorded_hashes.json` was written when format 1 was the only one: fixed recipes as they were, nested
compositions, and every method with its defaults.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny import tiny_model

from autopeft.backbones import spec_of_model
from autopeft.graph import build_graph, hash_of, parts_of
from autopeft.recipe import Recipe

RECORDED = json.loads(Path(__file__).with_name("recorded_hashes.json").read_text(encoding="utf-8"))
CASES = [(name, backbone) for name, by_backbone in RECORDED.items() for backbone in by_backbone]


def hashes(recipe: Recipe, backbone: str) -> dict[str, str]:
    spec, _ = spec_of_model(tiny_model(backbone))
    graph = build_graph(recipe, spec)
    assert hash_of(parts_of(spec).of(recipe)) == graph.hash()
    return {
        "recipe": recipe.hash(),
        "structure": recipe.structure_hash(),
        "graph": graph.hash(),
        "trial": graph.trial_hash(),
    }


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_hashes_are_what_they_were(name: str, backbone: str) -> None:
    recorded = dict(RECORDED[name][backbone])
    recipe = Recipe.from_yaml(recorded.pop("yaml"))
    assert hashes(recipe, backbone) == recorded
    assert (
        hashes(Recipe.from_yaml(recipe.to_yaml()), backbone) == recorded
    )  # written down in the format of today


def test_what_the_order_of_children_means() -> None:
    graphs = {name: by_backbone["bert"]["graph"] for name, by_backbone in RECORDED.items()}
    assert graphs["sum"] == graphs["sum-turned"]
    assert graphs["chain"] != graphs["chain-turned"]

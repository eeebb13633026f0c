"""Hashes are written into run folders, journals and kept baselines: those of files of format 1 and 2 stay.

`recorded_hashes.json` was written when format 1 was the only one: fixed recipes as they were, nested
compositions, and every method with its defaults. `recorded_hashes_2.json` has them in format 2, and fixed
recipes as they were at d8dcd6f2, whose code wrote it.
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
SECOND = json.loads(Path(__file__).with_name("recorded_hashes_2.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(found, backbone, id=f"{name}-{backbone}-{number}")
    for number, table in ((1, RECORDED), (2, SECOND))
    for name, by_backbone in table.items()
    for backbone, found in by_backbone.items()
]


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


@pytest.mark.parametrize(("found", "backbone"), CASES)
def test_hashes_are_what_they_were(found: dict[str, str], backbone: str) -> None:
    recorded = dict(found)
    recipe = Recipe.from_yaml(recorded.pop("yaml"))
    assert hashes(recipe, backbone) == recorded
    assert (
        hashes(Recipe.from_yaml(recipe.to_yaml()), backbone) == recorded
    )  # written down in the format of today


def test_what_the_order_of_children_means() -> None:
    graphs = {name: by_backbone["bert"]["graph"] for name, by_backbone in RECORDED.items()}
    assert graphs["sum"] == graphs["sum-turned"]
    assert graphs["chain"] != graphs["chain-turned"]

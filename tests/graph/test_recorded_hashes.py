"""Hashes are written into run folders, journals and kept baselines.

`recorded_hashes.json` was written by `record()` before compositions declared themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_model

from autopeft.backbones import spec_of_model
from autopeft.graph import build_graph, hash_of, parts_of
from autopeft.recipe import Recipe, recipe_names

RECORDED = Path(__file__).with_name("recorded_hashes.json")
LORA = {"lora": {"rank": 3, "sites": ["q", "v"]}}
ON_Q = {"ia3": {"sites": ["q"]}}
CHAIN = {"chain": [{"lora": {"rank": 2, "sites": ["q"]}}, ON_Q]}
NESTED: dict[str, dict[str, Any]] = {
    "sum": {"layers": [{"attach": [{"sum": ["lora", "ia3"]}]}]},
    "sum-turned": {"layers": [{"attach": [{"sum": ["ia3", "lora"]}]}]},
    "chain": {"layers": [{"attach": [CHAIN]}]},
    "chain-turned": {"layers": [{"attach": [{"chain": CHAIN["chain"][::-1]}]}]},
    "gate": {"layers": [{"at": "0-1", "attach": [{"gate": [LORA, {"prefix_tuning": {"length": 2}}]}]}]},
    "gate-unmasked": {
        "layers": [{"attach": [{"gate": {"children": [LORA, CHAIN], "masked": False}, "as": "g"}]}]
    },
    "route": {"layers": [{"attach": [{"route": {"children": [LORA], "copies": 3}}]}]},
    "route-options": {
        "layers": [{"attach": [{"route": {"children": [ON_Q, CHAIN], "top_k": 2, "balance": 0.1}}]}],
        "training": {"groups": {"ia3": {"learning_rate": 0.01}}, "warmup": 0.2},
    },
    "three-deep": {
        "layers": [
            {"at": [0, 2], "attach": [{"sum": [{"gate": [LORA, {"sum": [CHAIN, LORA]}]}, "lora"]}]},
            {"at": "last 1", "attach": [{"route": {"children": [LORA, CHAIN], "level": "sequence"}}]},
        ],
        "model": [{"prompt_tuning": {"length": 2}}],
        "training": {"learning_rate": 0.002, "policies": [{"lora_plus": {"ratio": 4}}]},
    },
}


def hashes(recipe: Recipe, backbone: str) -> dict[str, str]:
    spec, _ = spec_of_model(tiny_model(backbone))
    graph = build_graph(recipe, spec)
    assert hash_of(parts_of(spec).of(recipe)) == graph.hash()
    return {
        "recipe": recipe.hash(),
        "structure": recipe.structure_hash(),
        "graph": graph.hash(),
        "trial": graph.trial_hash(),
        "yaml": recipe.to_yaml(),
    }


def recipe_of(name: str) -> Recipe:
    return Recipe.from_dict({"name": name, **NESTED[name]}) if name in NESTED else Recipe.named(name)


def record() -> dict[str, dict[str, dict[str, str]]]:
    names = (*recipe_names(), *NESTED)
    return {name: {b: hashes(recipe_of(name), b) for b in ("bert", "llama")} for name in names}


@pytest.mark.parametrize("name", [*recipe_names(), *NESTED])
@pytest.mark.parametrize("backbone", ["bert", "llama"])
def test_hashes_and_files_are_what_they_were(name: str, backbone: str) -> None:
    assert hashes(recipe_of(name), backbone) == json.loads(RECORDED.read_text())[name][backbone]


def test_what_the_order_of_children_means() -> None:
    recorded = json.loads(RECORDED.read_text())
    graphs = {name: recorded[name]["bert"]["graph"] for name in recorded}
    assert graphs["sum"] == graphs["sum-turned"]
    assert graphs["chain"] != graphs["chain-turned"]

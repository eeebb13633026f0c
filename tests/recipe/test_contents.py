"""Names that recipes have after what is in them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.recipe.contents import name_from, placed_items

DIGEST = "5c1e9a77" * 8


def name(*blocks: list[Any], model: list[Any] | None = None) -> str:
    recipe = Recipe.from_dict({"layers": [{"attach": items} for items in blocks], "model": model or []})
    return name_from(recipe.layers, recipe.model, DIGEST)


@pytest.mark.parametrize(
    ("recipe", "stem"),
    [
        (([["lora"]], []), "lora"),
        (([["lora", "ia3"]], ["bitfit"]), "lora+ia3+bitfit"),
        (([["lora"], ["lora", "ia3"], ["lora"]], []), "lora+ia3"),
        (([["ia3", "lora"]], []), "ia3+lora"),
        (([[{"gate": ["lora", "ia3"]}, "serial_adapter"]], []), "gate-lora-ia3+serial_adapter"),
        (([[{"chain": [{"sum": ["lora", "ia3"]}, "ssf"]}]], []), "chain-sum-lora-ia3-ssf"),
        (([], ["prompt_tuning"]), "prompt_tuning"),
        (([], []), "head-only"),
    ],
)
def test_a_name_says_what_is_there_in_order(recipe: tuple[list[list[Any]], list[Any]], stem: str) -> None:
    blocks, model = recipe
    assert name(*blocks, model=model) == f"{stem}-5c1e9a"


def test_long_names_are_bounded_and_say_how_much_is_missing() -> None:
    gate = {"gate": ["lora", "ia3", "serial_adapter", "parallel_adapter", "p_tuning_v2"]}
    assert name([gate, "ssf"]) == "gate+ssf-5c1e9a"
    many = ["serial_adapter", "parallel_adapter", "p_tuning_v2", "lora", "ia3"]
    assert name(many) == "serial_adapter+parallel_adapter+3_more-5c1e9a"
    traits = {m: get_method(m).traits for m in method_names()}
    items = [m for m, t in traits.items() if "layers" in t.levels and "artefacts" not in t.needs]
    assert len(items) > 20
    for first in range(len(items)):
        for last in range(first + 1, len(items) + 1):
            found = name(list(items[first:last]))
            assert len(found) <= 47
            assert found.startswith(items[first])
            assert re.fullmatch(r"[A-Za-z0-9_+-]+", found), "a file can be called so, a shell reads one word"


def test_items_stand_where_they_are() -> None:
    recipe = Recipe.from_dict(
        {
            "layers": [
                {"at": "last 2", "attach": [{"lora": {"rank": 8, "sites": ["q", "v"]}}]},
                {"stack": "encoder", "attach": [{"gate": [{"lora": {"rank": 4}, "as": "mine"}, "ia3"]}]},
            ],
            "model": ["bitfit"],
        }
    )
    assert list(placed_items(recipe.layers, recipe.model)) == [
        ("layers last 2", "lora (sites q, v, rank 8)"),
        ("encoder layers all", "gate of lora (rank 4) as mine and ia3"),
        ("whole model", "bitfit"),
    ]

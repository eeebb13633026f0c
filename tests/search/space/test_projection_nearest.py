"""Of all members of a space, the one that is nearest to a recipe."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest
from support.projecting import EACH, SHARED, SIX, SPLIT, TINY, TWO, bound_to, recipe, space

from autopeft.errors import RecipeError
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.search.space import projection
from autopeft.search.space.projection import values_of
from autopeft.search.space.similarity import Encoder, RecipeDistance

NEAREST = """
name: nearest
layers:
  - at: {from: {int: [0, last]}, switch: {choice: [true, false]}}
    attach:
      - choice: [{lora: {rank: {choice: [0, 2, 6]}}}, {dora: {rank: 4, sites: [q]}}]
      - optional: {serial_adapter: {bottleneck: {int: [1, 3]}, variant: pfeiffer}}
model: [{optional: bitfit}]
"""
FAR = {
    "size": recipe({"lora": {"rank": 5, "sites": ["q"]}}, at=[1]),
    "sites": recipe({"lora": {"rank": 1, "sites": ["q", "k", "v"]}}, "ia3", model=["bitfit"]),
    "relative": recipe({"dora": {"rank": 1}}, {"parallel_adapter": {"bottleneck": 2, "sites": ["ffn"]}}),
    "setting": recipe({"serial_adapter": {"bottleneck": 9, "variant": "houlsby"}}, at=[0]),
    "gate": recipe({"gate": [{"lora": {"rank": 3}}, {"serial_adapter": {"bottleneck": 2}}]}, "prefix_tuning"),
    "model": recipe(model=["bitfit", {"prompt_tuning": {"length": 3}}]),
}


@pytest.mark.parametrize("name", FAR)
def test_the_nearest_of_all_members(name: str) -> None:
    bound = space(NEAREST, TWO)
    members = bound.kept(Encoder)
    bag, _ = members.read(FAR[name])
    names = [p.name for p in bound.parameters]
    distances = []
    for chosen in product(*(p.choices or range(int(p.low), int(p.high) + 1) for p in bound.parameters)):
        values = dict(zip(names, chosen, strict=True))
        try:
            bound.materialize(values)
        except EmptyRecipe:
            continue
        distances.append(members.comparison.distance(members.at(values), bag)[0])
    assert len(distances) > 400
    assert values_of(FAR[name], bound).distance == pytest.approx(min(distances), abs=1e-12)


def test_the_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    whole = RecipeDistance.distance

    def counted(self: Any, ours: Any, wanted: Any) -> tuple[float, int]:
        found = whole(self, ours, wanted)
        steps.append(found[1])
        return found

    monkeypatch.setattr(projection, "_EVALUATIONS", 1500)
    monkeypatch.setattr(RecipeDistance, "distance", counted)
    match = values_of(Recipe.named("unipelt"), bound_to("default", TINY))
    assert 1000 < sum(steps) < 1700
    assert match.overlap > 0.4


def test_a_recipe_with_too_many_entries_is_refused() -> None:
    with pytest.raises(RecipeError, match="1001 entries; at most 1000"):
        values_of(recipe(*["ia3"] * 1001), bound_to("lora"))


@pytest.mark.parametrize("text", [EACH, SHARED], ids=["each", "shared"])
def test_the_inverse_where_choices_are_drawn_for_each_of_many_layers(text: str) -> None:
    bound = space(text, SIX)
    for seed in range(6):
        wanted = bound.materialize(bound.sample(random.Random(seed)))
        assert values_of(wanted, bound).exact


@pytest.mark.parametrize("chosen", [("q", True), ("q+v", False)])
def test_the_same_places_in_other_entries_are_told_apart(chosen: tuple[str, bool]) -> None:
    bound = space(SPLIT)
    values = dict(zip([p.name for p in bound.parameters], chosen, strict=True))
    assert values_of(bound.materialize(values), bound).values == values


ALIKE = """
name: alike
layers:
  - attach:
      - {lora: {rank: {choice: [2, 4]}, sites: [q]}}
      - gate: [{lora: {rank: {choice: [2, 4]}, sites: [q]}}, ia3]
"""


def test_what_stands_in_a_composition_is_told_from_what_stands_alone() -> None:
    bound = space(ALIKE)
    alone, gated = (p.name for p in bound.parameters)
    members = bound.kept(Encoder)
    bag, swapped = (members.at({alone: r, gated: 6 - r}) for r in (2, 4))
    assert members.comparison.distance(bag, bag)[0] == 0
    assert members.comparison.distance(swapped, bag)[0] > 0.01


SWAPPED = """
name: swapped
layers:
  - {at: {choice: [[0], [1]]}, attach: [{lora: {rank: 2}}]}
  - {at: {choice: [[0], [1]]}, attach: [{lora: {rank: 4}}]}
"""


def test_pairs_lead_on_where_single_parameters_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = space(SWAPPED)
    first, second = (p.name for p in bound.parameters)
    stuck, wanted = {first: "1", second: "0"}, {first: "0", second: "1"}
    monkeypatch.setattr(projection._Descent, "_starts", lambda self: iter([stuck]))
    assert values_of(bound.materialize(wanted), bound).values == wanted


TWICE = """
name: twice
layers:
  - attach:
      - optional: {dora: {sites: [q], rank: 2}}
      - optional: {dora: {sites: [q], rank: 4}}
      - optional: ia3
"""


def test_the_nearest_member_always_holds_together() -> None:
    bound = space(TWICE)
    wanted = recipe({"dora": {"sites": ["q"], "rank": 2}}, {"dora": {"sites": ["q"], "rank": 4}}, "ia3")
    match = values_of(wanted, bound)
    assert not match.exact
    assert match.values["ia3.on"]
    assert sorted([match.values["dora.on"], match.values["dora.on_2"]]) == [False, True]

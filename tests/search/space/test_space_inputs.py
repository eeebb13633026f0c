"""Spaces whose entries start from inputs: what they say, what is refused, how recipes are found in them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.projecting import TINY, assert_inverse, points, trial_hash

from autopeft.counting import Budget
from autopeft.errors import RecipeError
from autopeft.graph import build_graph, on_sharded
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Resources
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.candidate import ResourceBudget, candidate
from autopeft.search.space.in_use import parameters_in_use
from autopeft.search.space.projection import values_of
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space

CONTENTS = {"a": "a" * 64, "b": "b" * 64}
SPACE = """
inputs: {a: runs/one, b: {bank: two}}
layers:
  - attach:
      - choice:
          - lora: {rank: {choice: [2, 4]}}
          - {lora: {rank: 3}, from: a}
          - {lora: {rank: 3}, from: a.small, frozen: true}
          - null
      - {ia3: {}, from: {choice: [null, a, b]}}
      - optional: {serial_adapter: {bottleneck: 4}, from: b, frozen: {choice: [true, false]}}
training:
  groups: {lora: {learning_rate: {choice: [1.0e-3, 1.0e-2]}}}
"""


def bound_to(text: str, contents: Mapping[str, str] = CONTENTS) -> BoundSpace:
    return Space.from_yaml(text).pinned(contents).bind(TINY)


def point(bound: BoundSpace, **values: Any) -> dict[str, Any]:
    return {**bound.middle(), **{name.replace("__", "."): value for name, value in values.items()}}


def started(recipe: Recipe) -> dict[str, tuple[tuple[str, ...], bool]]:
    return {entry.method: (entry.item.start, entry.item.frozen) for entry in recipe.entries()}


def test_a_space_asks_fresh_or_started_or_frozen() -> None:
    bound = bound_to(SPACE)
    assert [p.name for p in bound.parameters if p.name.endswith(("from", "frozen"))] == [
        "ia3.from", "serial_adapter.frozen"
    ]  # fmt: skip
    method = bound.parameter("method")
    found = []
    for choice in method.choices:
        values = point(bound, method=choice, ia3__from=None, serial_adapter__on=False)
        recipe = bound.materialize(values)
        found.append(started(recipe).get("lora"))
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        assert set(recipe.inputs) == ({"a"} if found[-1] not in (None, ((), False)) else set())
    assert found == [((), False), (("a",), False), (("a.small",), True), None]
    full = bound.materialize(point(bound, method=None, ia3__from="b", serial_adapter__frozen=True))
    assert started(full) == {"ia3": (("b",), False), "serial_adapter": (("b",), True)}
    assert full.inputs["b"].to_data() == {"bank": "two", "sha256": CONTENTS["b"]}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_point_is_found_again_from_its_recipe(data: st.DataObject) -> None:
    bound = bound_to(SPACE)
    assert_inverse(bound, data.draw(points(bound)))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_repair_keeps_what_starts_whole(data: st.DataObject) -> None:
    """Into any budget: it is there with the size that it starts with, or not at all."""
    bound = bound_to(SPACE)
    budget = Budget.parse(str(data.draw(st.integers(400, 4000))))
    found = repair(bound, data.draw(points(bound)), budget)
    for entry in found.recipe.entries():
        if entry.method == "lora" and entry.item.start:
            assert entry.item.config == {"rank": 3}
    graph = build_graph(found.recipe, TINY)
    assert graph.parameter_count().deployed == found.counts.deployed
    assert graph.parameter_count().trained == found.counts.trained
    assert budget.limits(TINY)[1] >= found.counts.deployed, "what is frozen is deployed too"


def test_equal_contents_are_one_candidate_and_others_are_not() -> None:
    text = "inputs: {a: x, b: y}\nlayers: [{attach: [{lora: {}, from: {choice: [null, a, b]}}]}]"

    def hashes(contents: Mapping[str, str]) -> list[str]:
        bound = bound_to(text, contents)
        (name,) = (p.name for p in bound.parameters)
        return [candidate(bound, {name: v}, Budget.parse("100%")).hash for v in (None, "a", "b")]

    assert len(set(hashes(CONTENTS))) == 3
    fresh, one, other = hashes(dict.fromkeys("ab", "c" * 64))
    assert one == other != fresh


def test_the_rate_of_what_is_frozen_decides_nothing() -> None:
    bound = bound_to(SPACE)
    for choice, decides in (("lora from a", True), ("lora frozen from a.small", False), (None, False)):
        values = point(bound, method=choice)
        used = parameters_in_use(bound, values, bound.materialize(values))
        assert ("lora.learning_rate" in used) == decides
        other = bound.materialize({**values, "lora.learning_rate": 1e-3})
        assert (trial_hash(other, TINY) != trial_hash(bound.materialize(values), TINY)) == decides


def test_a_recipe_is_matched_by_the_content_that_it_starts_from() -> None:
    bound = bound_to(SPACE)

    def of(name: str, content: str, **item: Any) -> Any:
        inputs = {name: {"folder": "elsewhere", "sha256": content}}
        tree = {"inputs": inputs, "layers": [{"attach": [{"lora": {"rank": 3}, "from": name, **item}]}]}
        match = values_of(Recipe.from_dict(tree), bound)
        return match, started(bound.materialize(match.values))["lora"]

    _, start = of("mine", CONTENTS["a"])
    assert start == (("a",), False)
    foreign, start = of("a", "d" * 64)  # the same name, and another content
    assert not foreign.exact
    assert any("dddd" in line for line in foreign.missing)
    loose = Recipe.from_dict({"inputs": {"a": "x"}, "layers": [{"attach": [{"lora": {}, "from": "a"}]}]})
    with pytest.raises(RecipeError, match="pinned"):
        values_of(loose, bound)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layers: [{attach: [{lora: {}, from: a}]}]", "List it under 'inputs:'"),
        ("inputs: {a: x}\nlayers: [{attach: [{lora: {}, from: {choice: [a, c]}}]}]", "starts from 'c'"),
        ("inputs: {a: x, b: y}\nlayers: [{attach: [{lora: {}, from: a}]}]", "no entry starts from 'b'"),
        ("inputs: {a: x}\nlayers: [{attach: [{lora: {}, from: {choice: [a, 3]}}]}]", "'from' is the name"),
        ("inputs: {a: /x}\nlayers: [{attach: [{lora: {}, from: a}]}]", "leads elsewhere"),
        (
            "inputs: {a: x}\nlayers: [{attach: [{lora: {}, from: {choice: [null, a]}, frozen: true}]}]",
            "nothing says at which values",
        ),
        ("model: [tpt]", "needs what another training has left"),
        ("inputs: {a: x}\nlayers: [{each_layer: [{lora: {}, from: a}]}]", "one 'at'"),
        (
            "inputs: {a: x}\nlayers: [{at: {choice: [all, last 2]}, attach: [ia3, {lora: {}, from: a}]}]",
            "keeps the layers that it was trained in",
        ),
        (
            "inputs: {a: x}\nvars: {on: {each_layer: {choice: [true, false]}}}\n"
            "layers: [{at: {switch: $on}, attach: [{choice: [ia3, {lora: {}, from: a}]}]}]",
            "block of its own",
        ),
        ("inputs: {a: {choice: [x, y]}}\nlayers: [{attach: [{lora: {}, from: a}]}]", "an input is a folder"),
    ],
)
def test_what_a_space_cannot_say_is_refused_when_it_is_read(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Space.from_yaml(text)


def test_a_size_of_zero_leaves_out_what_would_start() -> None:
    bound = bound_to(
        "inputs: {a: x}\nlayers: [{attach: [ia3, {lora: {rank: {choice: [0, 3]}}, from: a}]}]",
        {"a": "a" * 64},
    )
    without = bound.materialize({"lora.rank": 0})
    assert (without.methods, dict(without.inputs)) == (("ia3",), {})
    random_points = [bound.materialize(bound.sample(random.Random(i))) for i in range(8)]
    assert {bool(r.inputs) for r in random_points} == {True, False}


def test_what_starts_and_cannot_act_is_replaced_before_the_budget_is_looked_at() -> None:
    """A prompt that trains in phases leaves the room to the rest, where several processes train."""
    bound = bound_to(
        "inputs: {a: x}\nlayers: [{attach: [{lora: {rank: {choice: [1, 2, 4]}}}]}]\n"
        "model: [{optional: {spot: {length: 30}, from: a}}]",
        {"a": "a" * 64},
    )
    values = {"lora.rank": 4, "spot.on": True}
    sizes = [
        candidate(bound, {**values, "spot.on": on}, Budget.parse("100%")).deployed for on in (False, True)
    ]
    most = Budget.parse(str(sizes[0]))
    assert candidate(bound, values, most).point["lora.rank"] < 4
    within = Limits(processes=2)
    budget = ResourceBudget(
        most.upper, most.lower, within, lambda graph: Resources(on_sharded=on_sharded(graph))
    )
    assert candidate(bound, values, budget).point == {"lora.rank": 4, "spot.on": False}


def test_a_space_asks_how_several_inputs_are_merged() -> None:
    text = """
inputs: {a: runs/one, b: {bank: two}}
layers:
  - attach:
      - {ia3: {}, from: [a, b], merge: {choice: [mean, {how: ties, density: 0.2}]}}
"""
    bound = bound_to(text)
    (parameter,) = bound.parameters
    recipes = [bound.materialize({parameter.name: value}) for value in parameter.choices or ()]
    rules = [entry.item.to_data()["merge"] for recipe in recipes for entry in recipe.entries()]
    assert rules == ["mean", {"how": "ties", "density": 0.2}]
    assert len({trial_hash(recipe, TINY) for recipe in recipes}) == 2
    for recipe, value in zip(recipes, parameter.choices or (), strict=True):
        found = values_of(recipe, bound)
        assert (found.exact, found.values) == (True, {parameter.name: value})

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.recipe import EmptyRecipe
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.in_use import parameters_in_use
from autopeft.search.space.space import Space, space_names
from autopeft.spec import LogitsSpec

SMALL = """
vars:
  rank: {choice: [0, 2, 4]}
  first: {int: [0, last]}
  on: {each_layer: {choice: [true, false]}}
layers:
  - at: {from: $first, switch: $on}
    attach:
      - optional: {lora: {rank: $rank, alpha: {choice: [4, 8]}}}
  - attach:
      - gate:
          - serial_adapter: {bottleneck: {choice: [0, 8]}, variant: {choice: [houlsby, pfeiffer]}}
          - parallel_adapter: {bottleneck: {choice: [0, 4]}, scale: {choice: [1.0, 2.0]}}
model:
  - optional: {choice: [{prompt_tuning: {length: {choice: [4, 8]}}}, bitfit]}
training:
  learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
  groups:
    lora: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}
    prompt_tuning: {learning_rate: {float: [1.0e-3, 1.0e-1], log: true}}
"""


def bind(space: Space, model: str = "bert") -> BoundSpace:
    return space.bind(spec_of(tiny_config(model)))


def others(bound: BoundSpace, name: str, value: Any, rng: random.Random) -> list[Any]:
    parameter = bound.parameter(name)
    found = parameter.choices or tuple(parameter.sample(rng) for _ in range(3))
    return [other for other in found if repr(other) != repr(value)]


def data(bound: BoundSpace, values: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        return bound.materialize(values).to_dict()
    except EmptyRecipe:
        return None


@pytest.mark.parametrize("model", ["bert", "t5"])
@pytest.mark.parametrize("name", [*space_names(), "small"])
def test_what_is_not_in_use_changes_nothing(name: str, model: str) -> None:
    bound = bind(Space.from_yaml(SMALL) if name == "small" else Space.load(name), model)
    rng, unused, used = random.Random(0), 0, 0
    for _ in range(25):
        point = bound.sample(rng)
        before = data(bound, point)
        if before is None:
            continue
        in_use = parameters_in_use(bound, point, bound.materialize(point))
        for parameter in bound.parameters:
            same = [
                data(bound, {**point, parameter.name: other}) == before
                for other in others(bound, parameter.name, point[parameter.name], rng)
            ]
            if parameter.name not in in_use:
                unused += 1
                assert all(same), (parameter.name, point)
            elif same:
                used += not all(same)
    assert used > 25
    if name == "small":
        assert unused > 25


POINT: dict[str, Any] = {
    "rank": 2,
    "first": 1,
    "lora.on": True,
    "lora.alpha": 4,
    "serial_adapter.bottleneck": 8,
    "serial_adapter.variant": "houlsby",
    "parallel_adapter.bottleneck": 4,
    "parallel_adapter.scale": 2.0,
    "method.on": True,
    "method": "prompt_tuning",
    "prompt_tuning.length": 4,
    "learning_rate": 1e-3,
    "lora.learning_rate": 1e-3,
    "prompt_tuning.learning_rate": 1e-2,
    "layer_0.on": True,
    "layer_1.on": True,
    "layer_2.on": True,
}
PLACES = {"first", "layer_1.on", "layer_2.on"}


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, {"layer_0.on"}),  # it lies before the first layer
        ({"first": 0}, set()),
        ({"lora.on": False}, {"rank", "lora.alpha", "lora.learning_rate", "layer_0.on", *PLACES}),
        ({"rank": 0}, {"lora.alpha", "lora.learning_rate", "layer_0.on", *PLACES}),
        ({"layer_1.on": False}, {"layer_0.on"}),
        (
            {"layer_1.on": False, "layer_2.on": False},
            {"rank", "lora.on", "lora.alpha", "lora.learning_rate", "layer_0.on"},
        ),
        ({"serial_adapter.bottleneck": 0}, {"serial_adapter.variant", "layer_0.on"}),
        (
            {"serial_adapter.bottleneck": 0, "parallel_adapter.bottleneck": 0},
            {"serial_adapter.variant", "parallel_adapter.scale", "layer_0.on"},
        ),
        ({"method": "bitfit"}, {"prompt_tuning.length", "prompt_tuning.learning_rate", "layer_0.on"}),
        (
            {"method.on": False},
            {"method", "prompt_tuning.length", "prompt_tuning.learning_rate", "layer_0.on"},
        ),
    ],
)
def test_what_left_something_out_decided_and_what_it_left_out_did_not(
    changes: dict[str, Any], left_out: set[str]
) -> None:
    bound = bind(Space.from_yaml(SMALL))
    point = {**POINT, **changes}
    assert set(POINT) - parameters_in_use(bound, point, bound.materialize(point)) == left_out


@pytest.mark.parametrize("deep", [True, False])
def test_a_group_for_the_heads_hidden_layers_is_there_where_it_has_some(deep: bool) -> None:
    spec = replace(spec_of(tiny_config("bert")), logits=LogitsSpec(32, 2, deep=deep))
    text = """
autopeft: 2
name: s
layers: [{attach: [{lora: {rank: 2}}]}]
training:
  groups:
    head: {learning_rate: 0.1}
    head.hidden: {learning_rate: {float: [1.0e-4, 1.0e-2], log: true}}
"""
    bound = Space.from_yaml(text).bind(spec)
    values = bound.middle()
    recipe = bound.materialize(values)
    assert set(recipe.training.groups) == ({"head", "head.hidden"} if deep else {"head"})
    assert ("head.hidden.learning_rate" in parameters_in_use(bound, values, recipe)) == deep

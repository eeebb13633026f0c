"""Learning rates of trainings that are shorter than those that a range is meant for."""

from __future__ import annotations

import random

import pytest
from support.toy import toy_spec

from autopeft.errors import RecipeError
from autopeft.search.space.space import Space

SPACE = """
autopeft: 2
layers: [{attach: [lora]}]
training:
  learning_rate: {float: [3.0e-4, 1.0e-2], log: true, steps: 300}
  groups: {head: {learning_rate: {float: [1.0e-3, 1.0e-1], log: true}}}
"""


@pytest.mark.parametrize(
    ("steps", "low"),
    [
        (1000, 3e-4),
        (300, 3e-4),
        (200, 4.5e-4),
        (100, 9e-4),
        (60, 1.5e-3),
        (30, 1.73e-3),  # the middle of the range, sqrt(3e-4 · 1e-2)
        (1, 1.73e-3),
    ],
)
def test_the_lower_end_rises_as_trainings_get_shorter(steps: int, low: float) -> None:
    space = Space.from_yaml(SPACE).for_steps(steps)
    rate = space.bind(toy_spec()).parameter("learning_rate")
    assert (rate.low, rate.high) == (pytest.approx(low), 1e-2)
    head = space.bind(toy_spec()).parameter("head.learning_rate")
    assert (head.low, head.high) == (1e-3, 1e-1), "a range without steps holds for all"
    drawn = [space.bind(toy_spec()).sample(random.Random(i))["learning_rate"] for i in range(200)]
    assert rate.low <= min(drawn) < 1.2 * rate.low


@pytest.mark.parametrize(("low", "high"), [("1.2361e-3", "1.2362e-3"), ("1.2345e-3", "1.2345e-3")])
def test_the_lower_end_stays_in_its_range(low: str, high: str) -> None:
    text = SPACE.replace("[3.0e-4, 1.0e-2]", f"[{low}, {high}]")
    rate = Space.from_yaml(text).for_steps(60).bind(toy_spec()).parameter("learning_rate")
    assert float(low) <= rate.low <= rate.high == float(high)


def test_without_steps_the_ends_are_those_of_the_file_and_the_text_stays() -> None:
    space = Space.from_yaml(SPACE)
    assert space.bind(toy_spec()).parameter("learning_rate").low == 3e-4
    short = space.for_steps(60)
    assert short.text == space.text
    assert space.bind(toy_spec()).parameter("learning_rate").low == 3e-4, "the space itself is as it was"


@pytest.mark.parametrize("name", ["default", "prompts", "lora"])
def test_rates_of_the_built_in_spaces_reach_what_short_trainings_take(name: str) -> None:
    long, short = (Space.named(name).for_steps(steps).bind(toy_spec()) for steps in (500, 60))
    for whole, less in zip(long.parameters, short.parameters, strict=True):
        assert less.name == whole.name
        assert less.high == whole.high
        assert less.low == pytest.approx(whole.low * (5 if "learning_rate" in whole.name else 1))


@pytest.mark.parametrize(
    "range_",
    [
        "{float: [1.0e-3, 1.0], steps: 300}",
        "{float: [1.0e-3, 1.0], log: true, steps: 0}",
        "{float: [1.0e-3, 1.0], log: true, steps: 2.5}",
        "{float: [1.0e-3, 1.0], log: true, steps: null}",
    ],
)
def test_steps_are_a_number_of_a_logarithmic_range(range_: str) -> None:
    text = f"layers: [{{attach: [lora]}}]\ntraining: {{learning_rate: {range_}}}\n"
    with pytest.raises(RecipeError, match="'steps'"):
        Space.from_yaml(text)


def test_whole_numbers_have_no_steps() -> None:
    with pytest.raises(RecipeError, match="steps"):
        Space.from_yaml("layers: [{attach: [{lora: {rank: {int: [1, 4], log: true, steps: 9}}}]}]")

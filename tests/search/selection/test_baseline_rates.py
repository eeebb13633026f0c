from __future__ import annotations

from typing import Any

import pytest

from autopeft.counting import Counts
from autopeft.recipe import Recipe
from autopeft.search.selection.baselines import Baseline, Sweep, spread, swept

BASE: Any = {
    "name": "x",
    "layers": [{"attach": ["lora"]}],
    "training": {"groups": {"head": {"learning_rate": 1}}},
}


def sweep(rates: list[float], fastest: float = 1.0) -> Sweep:
    return Sweep("x", BASE, Counts(1, 1, 1, 100), rates, fastest)


def baseline_of(*sweeps: Sweep) -> tuple[Baseline, list[float]]:
    """A baseline of the sweeps, and the rate of each of its candidates."""
    found = swept(None, "lora", sweeps)
    assert found is not None
    return found, [Recipe.from_dict(dict(recipe)).training.learning_rate for recipe in found.candidates]


def test_a_sweep_goes_on_by_threes_on_both_sides() -> None:
    assert baseline_of(sweep([1e-3, 2e-3, 4e-3]))[1][3:] == [3.33e-4, 1.11e-4, 1.2e-2, 3.6e-2]


@pytest.mark.parametrize(
    ("last", "faster"),
    [(1e-2, [3e-2]), (9e-3, [2.7e-2]), (2e-2, [3e-2]), (2.9e-2, []), (3e-2, []), (5e-2, [])],
)
def test_it_goes_no_further_than_the_fastest(last: float, faster: list[float]) -> None:
    assert baseline_of(sweep([1e-3, last], 3e-2))[1][4:] == faster


def test_one_rate_is_no_sweep() -> None:
    baseline, rates = baseline_of(sweep([1e-3]), sweep([2e-3]))
    assert (rates, baseline.beyond) == ([1e-3, 2e-3], {})


def test_what_lies_beyond_comes_after_all_and_is_reached_from_the_ends() -> None:
    baseline, rates = baseline_of(sweep([1e-3, 2e-3, 4e-3]), sweep([3e-3, 9e-3], 1e-2))
    assert rates == [1e-3, 2e-3, 4e-3, 3e-3, 9e-3, 3.33e-4, 1.11e-4, 1.2e-2, 3.6e-2, 1e-3, 3.33e-4]
    assert baseline.beyond == {0: (5,), 5: (6,), 2: (7,), 7: (8,), 3: (9,), 9: (10,)}
    heads = [recipe["training"]["groups"]["head"]["learning_rate"] for recipe in baseline.candidates]
    assert set(heads) == {1}


def test_where_the_middle_comes_first_the_others_are_its_neighbours() -> None:
    two = [sweep(rates)._replace(middle_first=True) for rates in ([1e-3, 2e-3, 4e-3], [3e-3, 9e-3, 1e-1])]
    baseline, rates = baseline_of(*two)
    beyond = baseline.beyond
    assert rates[:2] == [2e-3, 9e-3]
    assert [rates[i] for i in beyond[0]] == [1e-3, 4e-3]
    assert [rates[i] for i in beyond[1]] == [3e-3, 1e-1]
    assert [[rates[j] for j in beyond[i]] for i in beyond[0]] == [[3.33e-4], [1.2e-2]]


def test_rates_are_spread_by_ratio() -> None:
    assert spread([1e-3, 2e-3, 1.6e-2], 3) == [1e-3, 4e-3, 1.6e-2]
    assert spread([1e-3, 2e-3, 1.6e-2], 1) == [2e-3]

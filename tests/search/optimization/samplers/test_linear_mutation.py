from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from autopeft.search.optimization.samplers.linear import draw, mutate

SPACE: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(("a", True, None)),
    "on": CategoricalDistribution((True, False)),
    "one": CategoricalDistribution(("only",)),
    "index": IntDistribution(0, 10),
    "by_three": IntDistribution(1, 10, step=3),
    "width": IntDistribution(1, 4096, log=True),
    "rate": FloatDistribution(1e-4, 1e-1, log=True),
    "share": FloatDistribution(-1.0, 1.0),
    "quarter": FloatDistribution(0.0, 1.0, step=0.25),
}


def lies_within(params: dict[str, Any], space: dict[str, BaseDistribution] = SPACE) -> bool:
    return params.keys() == space.keys() and all(
        d._contains(d.to_internal_repr(params[name])) for name, d in space.items()
    )


@given(st.integers(0, 2**32), st.integers(1, 5))
def test_draws_and_mutants_lie_within_their_distributions(seed: int, generations: int) -> None:
    rng = np.random.default_rng(seed)
    params = draw(SPACE, rng)
    assert lies_within(params)
    for _ in range(generations):
        child = mutate(params, SPACE, rng)
        assert lies_within(child)
        assert all(isinstance(child[n], int) for n in ("index", "by_three", "width"))
        assert all(isinstance(child[n], float) for n in ("rate", "share", "quarter"))
        assert 1 <= sum(child[n] != params[n] for n in SPACE) <= 3
        params = child


def test_a_float_at_its_end_moves_too() -> None:
    rng = np.random.default_rng(0)
    space = {"rate": SPACE["rate"]}
    assert all(mutate({"rate": 1e-1}, space, rng)["rate"] < 1e-1 for _ in range(100))


def test_a_mutant_of_what_does_not_fit_fits() -> None:
    rng = np.random.default_rng(0)
    assert lies_within(mutate({"index": 11, "rate": -1.0, "kind": "z", "gone": 1}, SPACE, rng))


def test_draws_are_uniform_and_log_uniform_with_full_shares_at_the_ends() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw(SPACE, rng) for _ in range(4400)]
    index = Counter(d["index"] for d in drawn)
    assert all(abs(index[i] - 400) < 100 for i in range(11))
    assert {d["by_three"] for d in drawn} == {1, 4, 7, 10}
    assert {d["quarter"] for d in drawn} == {0.0, 0.25, 0.5, 0.75, 1.0}
    middle = [d["rate"] < math.sqrt(1e-5) for d in drawn]
    assert abs(np.mean(middle) - 0.5) < 0.04
    # From 0.5 to 4096.5 by the logarithm, half of the draws are below 45.3.
    assert abs(np.mean([d["width"] <= 45 for d in drawn]) - 0.5) < 0.04


def test_mutants_of_numbers_are_mostly_near() -> None:
    rng = np.random.default_rng(0)
    space = {"index": SPACE["index"]}
    steps = [abs(mutate({"index": 5}, space, rng)["index"] - 5) for _ in range(500)]
    assert min(steps) == 1
    assert np.mean([s <= 2 for s in steps]) > 0.65
    assert max(steps) == 5


def test_a_space_of_single_values_has_one_point() -> None:
    rng = np.random.default_rng(0)
    space: dict[str, BaseDistribution] = {"one": SPACE["one"], "two": IntDistribution(3, 3)}
    assert draw(space, rng) == {"one": "only", "two": 3} == mutate({"one": "only", "two": 3}, space, rng)

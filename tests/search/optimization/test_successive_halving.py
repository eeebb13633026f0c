from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import UsageError
from autopeft.search.optimization.successive_halving import Rungs, Standing, SuccessiveHalving, ranked

THREE = Rungs((1, 3, 9), (1.0, 1.0, 1.0))


def test_rungs_are_a_third_of_each_other_down_to_forty_steps() -> None:
    assert Rungs.of(500).steps == (56, 167, 500)
    assert Rungs.of(200).steps == (67, 200)
    assert Rungs.of(120).steps == (40, 120)
    assert Rungs.of(60).steps == (60,)
    assert Rungs.of(500, "none").steps == (500,)
    assert Rungs.of(360, "data").shares == pytest.approx((1 / 9, 1 / 3, 1.0))
    assert Rungs.of(360).shares == (1.0, 1.0, 1.0)


def test_expected_steps_of_a_trial() -> None:
    assert Rungs.of(60).expected == 60
    assert THREE.expected == pytest.approx(1 + 2 / 3 + 6 / 9)


@pytest.mark.parametrize("bad", [{"fidelity": "epochs"}, {"first": 0}, {"eta": 1}])
def test_what_are_no_rungs_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Rungs.of(100, **bad)  # type: ignore[arg-type]


entries = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12).map(
    lambda pairs: [Standing(i, float(score), size) for i, (score, size) in enumerate(pairs)]
)


@given(entries)
def test_with_two_objectives_nothing_comes_before_what_dominates_it(found: list[Standing]) -> None:
    order = ranked(found, objectives=2)
    assert sorted(e.number for e in order) == [e.number for e in found]
    for before, after in itertools.combinations(order, 2):
        dominated = after.score >= before.score and after.cost <= before.cost
        strictly = after.score > before.score or after.cost < before.cost
        assert not (dominated and strictly)


@given(entries)
def test_with_one_objective_the_score_decides(found: list[Standing]) -> None:
    scores = [e.score for e in ranked(found)]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("rising", "promoted"), [(False, [(3, 0), (6, 1), (9, 2)]), (True, [(n, n - 1) for n in range(3, 10)])]
)
def test_the_best_third_goes_on_as_soon_as_it_is_known(rising: bool, promoted: list[tuple[int, int]]) -> None:
    halving = SuccessiveHalving(THREE, planned=9)
    gone: list[tuple[int, int]] = []
    for number in range(9):
        halving.reach(Standing(number, number / 10 * (1 if rising else -1), 1), 1)
        while (found := halving.candidate()) is not None:
            halving.promote(*found)
            gone.append((number + 1, found[0]))
    assert gone == promoted
    assert set(halving.waiting) == set(range(9)) - {n for _, n in promoted}


def test_a_higher_rung_comes_first() -> None:
    halving = SuccessiveHalving(THREE, planned=30)
    for number in range(9):
        halving.reach(Standing(number, number / 10, 1), 1)
    for number in (6, 7, 8):
        halving.promote(number, 1)
        halving.reach(Standing(number, number / 10, 1), 3)
    assert halving.candidate() == (8, 3)


def test_at_the_end_enough_trials_reach_the_last_rung() -> None:
    halving = SuccessiveHalving(THREE, planned=2, least=2)
    for number in range(2):
        halving.reach(Standing(number, number / 10, 1), 1)
    assert halving.candidate() is None
    reached = []
    while (found := halving.candidate(closing=True)) is not None:
        number, step = found
        halving.promote(number, step)
        following = THREE.steps[THREE.steps.index(step) + 1]
        halving.reach(Standing(number, number / 10, 1), following)
        if following == 9:
            reached.append(number)
    assert sorted(reached) == [0, 1]


def test_a_failed_trial_stands_nowhere() -> None:
    halving = SuccessiveHalving(THREE, planned=9)
    for number in range(3):
        halving.reach(Standing(number, number / 10, 1), 1)
    halving.drop(2)
    assert halving.candidate() is None
    assert set(halving.waiting) == {0, 1}


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_what_is_called_hopeless_never_goes_on(seed: int, least: int) -> None:
    rng = random.Random(seed)
    halving = SuccessiveHalving(THREE, planned=12, least=least)
    lost: set[int] = set()
    for number in range(12):
        halving.reach(Standing(number, rng.choice([0.1, 0.2, 0.3, 0.4]), rng.randint(1, 3)), 1)
        while (found := halving.candidate(closing=number == 11)) is not None:
            assert found[0] not in lost
            halving.promote(*found)
            following = THREE.steps[THREE.steps.index(found[1]) + 1]
            halving.reach(Standing(found[0], rng.random(), 1), following)
        lost |= halving.hopeless()

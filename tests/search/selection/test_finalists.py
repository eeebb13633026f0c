from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from autopeft.runs.records import TrialRecord
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_frugal, promise


def test_finalists_are_different_recipes() -> None:
    records = [TrialRecord("trial", "t", "complete", {}, number=i, hash=h) for i, h in enumerate("aabc")]
    assert [r.number for r in choose_finalists(records, 2)] == [0, 2]


def test_few_scores_are_drawn_towards_the_others_further_than_many() -> None:
    one, many = promise([[0.9], [0.8, 0.8, 0.8, 0.8]])
    assert one == pytest.approx((0.9 + 0.85) / 2)
    assert many == pytest.approx((3.2 + 0.85) / 5)
    assert promise([[0.5, 0.7]]) == pytest.approx([0.6])


def test_one_that_collapsed_draws_the_others_nowhere() -> None:
    level, collapsed = [[-8.0] * 4, [-8.05] * 5], [-60.0] * 4
    two, three = promise(level), promise([*level, collapsed])
    assert two[0] > two[1]
    assert three[0] > three[1]
    assert three[0] == pytest.approx(two[0], abs=0.02)


def test_a_promise_errs_less_than_a_mean_where_recipes_differ_as_seeds_do() -> None:
    random = np.random.default_rng(0)
    plain, drawn = 0.0, 0.0
    for _ in range(400):
        true = random.normal(0.8, 0.02, 5)
        scores = [list(random.normal(t, 0.02, n)) for t, n in zip(true, (1, 2, 2, 4, 4), strict=True)]
        plain += float(((np.array([np.mean(s) for s in scores]) - true) ** 2).sum())
        drawn += float(((np.array(promise(scores)) - true) ** 2).sum())
    assert drawn < 0.9 * plain


def trial(number: int, score: float, cost: float, rank: float | None = None) -> TrialRecord:
    merits = {} if rank is None else {"9": rank}
    return TrialRecord(
        "trial", "t", "complete", {}, number, steps=9, hash=str(number), score=score, merits=merits,
        counts={"deployed": 100 * cost}, step_cost=cost,
    )  # fmt: skip


def numbers(
    records: list[TrialRecord], top: int, reference: float | None = 0.80, at_most: float = 9.0
) -> list[int | None]:
    baseline = None if reference is None else trial(99, reference, at_most)
    return [r.number for r in choose_frugal(records, top, "step_cost", baseline, 0.01)]


def test_the_cheapest_that_may_be_within_the_margin_come_first_and_then_the_best() -> None:
    records = [trial(0, 0.82, 1.5), trial(1, 0.79, 0.5), trial(2, 0.785, 0.7), trial(3, 0.70, 0.1)]
    assert numbers(records, 2) == [1, 0]
    assert numbers(records, 1) == [0], "alone it is the best of those that cost less"
    assert numbers(records, 1, at_most=1.0) == [1]
    assert numbers(records, 1, at_most=0.1) == [0], "nothing costs less"
    # What a cheaper one beats comes last, what is out of reach only where nothing else is left.
    assert numbers(records, 3) == [1, 0, 2]
    assert numbers(records, 4) == [1, 0, 2, 3]


@pytest.mark.parametrize(
    ("trials", "top", "more", "chosen"),
    [
        # What costs as much as the baseline is no finalist but the best.
        ([(0.82, 1.5), (0.815, 1.0), (0.81, 0.9), (0.79, 0.5)], 3, {"at_most": 1.0}, [3, 2, 0]),
        # A score of one seed is drawn half the way to the baseline.
        ([(0.80, 1.0), (0.781, 0.5), (0.779, 0.4)], 2, {}, [1, 0]),
        # Of equal cost the better one is.
        ([(0.82, 1.5), (0.80, 0.5, -0.3), (0.80, 0.5, -0.4)], 2, {}, [1, 0]),
        # Where nothing is near, the best are, and without a baseline the best has to be reached.
        ([(0.60, 1.0), (0.55, 0.5), (0.5, 0.4)], 2, {}, [0, 1]),
        ([(0.60, 1.0), (0.55, 0.5), (0.5, 0.4)], 2, {"reference": None}, [0, 1]),
        ([], 2, {}, []),
    ],
)
def test_who_is_a_finalist_where_cost_counts(
    trials: list[tuple[float, ...]], top: int, more: dict[str, Any], chosen: list[int]
) -> None:
    assert numbers([trial(i, *told) for i, told in enumerate(trials)], top, **more) == chosen


def test_finalists_are_spread_from_the_cheapest_to_the_best_that_costs_less() -> None:
    records = [trial(i, 0.82 - 0.003 * i, 1.0 - 0.05 * i) for i in range(9)]
    assert numbers(records, 4, at_most=0.96) == [8, 4, 1, 0]
    assert numbers(records, 3, reference=None) == [6, 0, 5]


def test_a_candidate_of_a_baseline_goes_by_its_label() -> None:
    record = TrialRecord("baseline", "LoRA below", "complete", {}, job="baseline-0-4", score=0.5, steps=9)
    found = Finalist(record)
    assert (found.name, found.number, found.ranks) == ("LoRA below", None, [0.5])
    assert [job.id for job in found.jobs([7], 9)] == ["confirm-baseline-0-4-s7"]

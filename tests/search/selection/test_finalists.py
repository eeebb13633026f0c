from __future__ import annotations

import numpy as np
import pytest

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_winner, promise


def test_finalists_are_different_recipes() -> None:
    records = [TrialRecord("trial", "t", "complete", {}, number=i, hash=h) for i, h in enumerate("aabc")]
    assert [r.number for r in choose_finalists(records, 2)] == [0, 2]


def finalist(number: int, scores: list[float | None], deployed: int = 10) -> Finalist:
    found = Finalist(TrialRecord("trial", "t", "complete", {}, number, counts={"deployed": deployed}))
    for job, score in zip(found.jobs(range(len(scores)), 10), scores, strict=True):
        failed = JobResult(job.id, error="boom", failure="failed")
        found.take(failed if score is None else JobResult(job.id, {"select": score}))
    return found


def test_the_best_mean_wins_and_of_equals_the_smaller() -> None:
    low, high, small = finalist(0, [0.5, 0.5]), finalist(1, [0.5, 0.75]), finalist(2, [0.625, 0.625], 3)
    assert choose_winner([low, high]) is high
    assert choose_winner([low, high, small]) is small


def test_of_wholly_equal_finalists_the_first_wins() -> None:
    """They come as the search ranked them."""
    first, second = finalist(7, [0.5]), finalist(3, [0.5])
    assert choose_winner([first, second]) is first


def test_one_whose_runs_partly_failed_comes_after_the_others() -> None:
    partly, whole = finalist(0, [0.9, None]), finalist(1, [0.5, 0.5])
    assert choose_winner([partly, whole]) is whole
    assert choose_winner([partly]) is partly
    assert choose_winner([finalist(0, [None])]) is None


def searched(number: int, score: float, fresh: list[float]) -> Finalist:
    found = Finalist(TrialRecord("trial", "t", "complete", {}, number, score=score, counts={"deployed": 10}))
    for job, value in zip(found.jobs(range(len(fresh)), 10), fresh, strict=True):
        found.take(JobResult(job.id, {"select": value}))
    return found


def test_the_score_of_the_search_counts_as_one_more_seed() -> None:
    lucky, steady = searched(0, 0.9, [0.7, 0.7, 0.7]), searched(1, 0.8, [0.72, 0.72, 0.72])
    assert choose_winner([steady, lucky]) is lucky, "3.0 of four seeds against 2.96"
    assert choose_winner([searched(0, 0.9, [0.6, 0.7, 0.7]), steady]) is steady


def test_few_scores_are_drawn_towards_the_others_further_than_many() -> None:
    one, many = promise([[0.9], [0.8, 0.8, 0.8, 0.8]])
    assert one == pytest.approx((0.9 + 0.85) / 2)
    assert many == pytest.approx((3.2 + 0.85) / 5)
    assert promise([[0.5, 0.7]]) == pytest.approx([0.6])


def test_a_promise_errs_less_than_a_mean_where_recipes_differ_as_seeds_do() -> None:
    random = np.random.default_rng(0)
    plain, drawn = 0.0, 0.0
    for _ in range(400):
        true = random.normal(0.8, 0.02, 5)
        scores = [list(random.normal(t, 0.02, n)) for t, n in zip(true, (1, 2, 2, 4, 4), strict=True)]
        plain += float(((np.array([np.mean(s) for s in scores]) - true) ** 2).sum())
        drawn += float(((np.array(promise(scores)) - true) ** 2).sum())
    assert drawn < 0.9 * plain

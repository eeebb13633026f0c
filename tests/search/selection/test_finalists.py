from __future__ import annotations

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_winner


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

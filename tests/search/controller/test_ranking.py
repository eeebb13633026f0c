"""What recipes are ranked by: the score, or the loss where the two disagree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.searching import Stage, honest, rank_of

from autopeft.search.core.jobs import Job, JobResult

Make = Callable[..., Stage]


def disagreeing(job: Job) -> JobResult:
    """The score grows with LoRA's rank; the loss grows too."""
    result = honest(job)
    assert job.rank_by in ("loss", "score")
    if job.rank_by == "score" or job.kind == "test":
        return result
    keep = job.kind == "confirm" or getattr(job, "keep_above", None) is not None
    return replace(result, merit=-rank_of(job) / 10, files={"w": job.id.encode()} if keep else {})


@pytest.mark.parametrize(("rank_by", "best"), [("score", max), ("loss", min)])
def test_trials_finalists_and_the_winner_are_ranked_by_it(
    make_stage: Make, rank_by: str, best: Callable[[list[int]], int]
) -> None:
    stage = make_stage(rank_by=rank_by)
    stage.play(disagreeing)
    ranks = [rank_of(job) for job in stage.jobs if job.kind == "trial"]
    winner = stage.controller.selection.winner
    assert winner is not None
    assert winner.recipe["layers"][0]["attach"][0]["lora"]["rank"] == best(ranks)
    finalists = {rank_of(job) for job in stage.jobs if job.kind == "confirm"}
    assert finalists == set(sorted(ranks, reverse=best is max)[:2])
    kept = stage.controller.best.number
    assert kept is not None
    assert stage.controller.strategy.candidates(1)[0].number == kept
    confirmed = [record for record in stage.records if record.kind == "confirm"]
    assert all(record.score is not None and record.score > 0 for record in confirmed), "scores stay scores"
    assert {record.rank == record.score for record in confirmed} == {rank_by == "score"}


@pytest.mark.parametrize(("rank_by", "chosen"), [("score", 2e-3), ("loss", 1e-3)])
def test_baselines_choose_by_it(make_stage: Make, rank_by: str, chosen: float) -> None:
    def outcome(job: Job) -> JobResult:
        result = disagreeing(job)
        if job.kind != "baseline":
            return result
        rate = float(job.recipe.get("training", {}).get("learning_rate", 1e-3))
        merit = None if rank_by == "score" else -rate
        return replace(result, scores=dict.fromkeys(job.splits, 0.5 + rate), merit=merit)

    stage = make_stage(rank_by=rank_by)
    stage.play(outcome)
    (baseline,) = (b.runs.contender() for b in stage.controller.selection.baselines)
    assert baseline.recipe.get("training", {}).get("learning_rate", 1e-3) == chosen
    assert all(score > 0.5 for score in baseline.select)

"""What takes the place of finalists that fail, and what is told where time is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, Stage, baseline, finished, honest, lora, rank_of

from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.finals import Finals

Make = Callable[..., Stage]
EFFORT_OF_TEN = replace(EFFORT, trials=10, top=4)


def failing(*ranks: int) -> Callable[[Job], JobResult]:
    """One of two seeds of the finalists of these ranks fails."""

    def outcome(job: Job) -> JobResult:
        if job.kind == "confirm" and job.seed == 1001 and rank_of(job) in ranks:
            return JobResult(job.id, error="boom", failure="non_finite", seconds=2.0)
        return honest(job)

    return outcome


def of_one_finalist(make_stage: Make, **more: Any) -> Stage:
    effort = replace(EFFORT_OF_TEN, top=1)
    return make_stage(effort, tuple(range(41, 51)), baselines=[baseline(40)], **more)


def confirmed_ranks(stage: Stage) -> list[int]:
    return [rank_of(job) for job in stage.jobs if job.kind == "confirm"]


def test_the_next_best_takes_the_place_of_a_finalist_that_failed(make_stage: Make, tmp_path: Path) -> None:
    """LoRA, of which one candidate in several has all of its seeds, would win by that alone."""
    stage = of_one_finalist(make_stage)
    stage.play(failing(50, 49))
    assert confirmed_ranks(stage) == [50, 50, 49, 49, 48, 48]
    assert stage.events.seen.count(("phase", "another finalist", 2)) == 2
    result, _ = finished(stage, tmp_path)
    assert result.winner.to_dict()["layers"] == lora(48).to_dict()["layers"]
    assert result.confirmed


def test_a_finalist_that_has_all_seeds_is_followed_by_none(make_stage: Make) -> None:
    stage = make_stage(replace(EFFORT_OF_TEN, top=2), tuple(range(41, 51)), baselines=[baseline(40)])
    stage.play(failing(50))
    assert sorted(confirmed_ranks(stage)) == [49, 49, 50, 50]


def test_where_all_fail_the_baseline_is_returned(make_stage: Make, tmp_path: Path) -> None:
    stage = of_one_finalist(make_stage)
    stage.play(failing(*range(41, 51)))
    assert confirmed_ranks(stage) == [50, 50, 49, 49, 48, 48, 47, 47]
    result, _ = finished(stage, tmp_path)
    assert result.origin == "LoRA of rank 40"
    assert "ended all of its runs" in result.finding


@pytest.mark.parametrize("when", ["no time", "interrupted"])
def test_without_time_no_other_finalist_is_trained(
    make_stage: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    stage = of_one_finalist(make_stage)
    asked: list[int] = []
    if when == "no time":
        monkeypatch.setattr(
            stage.controller.time_budget, "fits", lambda jobs: asked.append(len(jobs)) or False
        )
    fail = failing(50)

    def outcome(job: Job) -> JobResult:
        if when == "interrupted" and job.id.endswith("s1001") and job.kind == "confirm":
            stage.controller.interrupt()
        return fail(job)

    stage.play(outcome)
    assert confirmed_ranks(stage) == [50, 50]
    assert asked == ([4] if when == "no time" else []), "two seeds and two tests"
    if when == "no time":
        result, _ = finished(stage, tmp_path)
        assert result.origin == "LoRA of rank 40"


def test_what_there_was_no_time_for_is_told(
    make_stage: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = of_one_finalist(make_stage)
    stage.play(honest)
    assert finished(stage, tmp_path)[0].remarks == ()
    short = make_stage(replace(EFFORT_OF_TEN, seeds=3), baselines=[baseline(40)])
    shortest = Finals(replace(EFFORT_OF_TEN, top=1, seeds=2))
    monkeypatch.setattr(short.controller.time_budget, "shorten", lambda forms, jobs: shortest)
    short.play(honest)
    found = finished(short, tmp_path / "short")[0].remarks
    finalists, seeds = found
    assert "1 of 4 finalists" in finalists
    assert "2 of 3 fresh seeds" in seeds

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, Stage, honest, lora, rank_of, ready_to_finish

from autopeft.effort import Effort
from autopeft.errors import AutoPEFTError, StoppedError
from autopeft.hybrid.store import WEIGHTS
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.finish import course, finish, trained_steps
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.baselines import Baseline

Make = Callable[..., Stage]


def test_of_equal_trials_recipe_and_weights_are_of_the_same_one(make_stage: Make, tmp_path: Path) -> None:
    """The first of two equal trials keeps its weights; the study would rank the smaller, later one first."""
    stage = make_stage(ranks=(9, 2))
    chief = stage.controller
    first, second = chief.next(), chief.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    for job in sorted((first, second), key=rank_of, reverse=True):
        chief.complete(replace(honest(job), scores={"select": 0.5}))
    chief.interrupt()
    chief.abandon()
    kept = chief.strategy.study.get(chief.best.number or 0)
    assert chief.strategy.study.best()[0].number != kept.number
    folder = RunFolder.create("t", "key", root=tmp_path / "runs", out=None)
    result = finish(ready_to_finish(), folder, chief, 1.0)
    assert result.winner.to_dict() == kept.recipe
    assert (folder.winner / WEIGHTS).read_bytes() == f"trial-{kept.number}".encode()


def test_without_a_trained_trial_there_is_no_result_but_the_first_failure(
    make_stage: Make, tmp_path: Path
) -> None:
    stage = make_stage()
    stage.play(lambda job: JobResult(job.id, error=f"boom {job.id}", failure="failed"))
    with pytest.raises(AutoPEFTError, match=r"All 5 trials failed.*boom trial-0"):
        finish(ready_to_finish(), RunFolder(tmp_path), stage.controller, 1.0)
    assert not (tmp_path / "result.json").exists()


def test_an_interruption_before_any_result_says_how_to_go_on(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage()
    assert isinstance(stage.controller.next(), Job)
    stage.controller.interrupt()
    stage.controller.abandon()
    with pytest.raises(StoppedError, match=rf"Go on with: autopeft search --resume .*{tmp_path.name}"):
        finish(ready_to_finish(), RunFolder(tmp_path / "a run"), stage.controller, 1.0)


def failing(kinds: set[str], *, trials: Callable[[int], bool] = lambda number: False) -> Any:
    """`honest`, but all jobs of some kinds fail, and some trials."""

    def outcome(job: Job) -> JobResult:
        if job.kind in kinds or (job.kind == "trial" and trials(job.number or 0)):
            return JobResult(job.id, error="The loss is not finite.", failure="non_finite")
        return honest(job)

    return outcome


def finished(stage: Stage, place: Path, goal: Any = "best") -> Any:
    ready = ready_to_finish()
    ready.goal = goal
    return finish(ready, RunFolder.create("t", "key", root=place / "runs", out=None), stage.controller, 1.0)


def test_a_trial_that_is_the_recipe_of_a_baseline_is_told_by_the_baselines_name(
    make_stage: Make, tmp_path: Path
) -> None:
    single = Baseline("the best single method", (lora(9).to_dict(),), {"deployed": 90}, kind="single")
    stage = make_stage(ranks=(2, 9), baselines=[single])
    stage.play(honest)
    found = finished(stage, tmp_path)
    assert found.number is not None
    assert "is the best single method" in found.finding


def test_a_baseline_above_the_lora_that_is_returned_is_named(make_stage: Make, tmp_path: Path) -> None:
    races = [
        Baseline(name, (lora(rank).to_dict(),), {"deployed": 10 * rank}, kind=kind)  # type: ignore[arg-type]
        for name, rank, kind in (("LoRA", 50, "lora"), ("single", 80, "single"), ("head", 1, "head"))
    ]
    stage = make_stage(ranks=(2, 9), baselines=races)
    stage.play(honest)
    found = finished(stage, tmp_path)
    assert found.origin == "LoRA"
    assert found.finding is not None
    assert "single ranks higher" in found.finding


def test_it_says_how_many_finalists_were_trained(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(baselines=[])
    stage.play(honest)
    found = finished(stage, tmp_path)
    assert (found.confirmed, found.finalists) == (True, EFFORT.top)
    assert found.to_dict()["finalists"] == EFFORT.top


@pytest.mark.parametrize(
    ("effort", "how_many"),
    [(replace(EFFORT, trials=1, top=1, seeds=1), "the only training"), (EFFORT, "all 10 trainings")],
)
def test_where_all_fresh_seeds_fail_that_is_said(
    make_stage: Make, tmp_path: Path, effort: Effort, how_many: str
) -> None:
    stage = make_stage(effort, baselines=[])
    stage.play(failing({"confirm"}))
    found = finished(stage, tmp_path, "smallest")
    assert (found.confirmed, found.finalists) == (False, 0)
    assert any(how_many in said.lower() and "The loss is not finite." in said for said in found.remarks)
    assert "not the smallest" in found.finding
    assert how_many in found.finding


def test_an_interruption_between_fresh_seeds_is_not_told_as_none(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(baselines=[])

    def outcome(job: Job) -> JobResult:
        if job.kind == "confirm":
            stage.controller.interrupt()
        return honest(job)

    stage.play(outcome, workers=1)
    found = finished(stage, tmp_path, "smallest")
    assert "not the smallest" in found.finding
    assert "failed" not in found.finding


def test_a_search_that_gives_up_says_so(make_stage: Make, tmp_path: Path) -> None:
    effort = replace(EFFORT, trials=40)
    stage = make_stage(effort, baselines=[])
    stage.play(failing(set(), trials=lambda number: number > 2))
    told = [remark for remark in finished(stage, tmp_path).remarks if "gave up" in remark]
    launched = stage.controller.strategy.launched
    assert launched < 40
    assert len(told) == 1
    assert told[0].startswith(f"The search gave up after {launched} of 40 trials, as {launched - 3} of them")
    assert "The loss is not finite" in told[0]


def test_a_search_that_ends_as_planned_says_nothing_of_it(make_stage: Make, tmp_path: Path) -> None:
    stage = make_stage(baselines=[])
    stage.play(failing(set(), trials=lambda number: number == 1))
    assert finished(stage, tmp_path).remarks == ()


def trial(
    number: int, state: Any, score: float | None, deployed: int, rungs: dict[str, float]
) -> TrialRecord:
    counts: dict[str, int | float] = {"deployed": deployed, "share": 0.1}
    return TrialRecord("trial", "t", state, {}, number, counts=counts, score=score, rungs=rungs)


def test_the_course_counts_all_steps_and_full_trainings() -> None:
    records = [
        trial(2, "complete", 0.5, 100, {"20": 0.4, "60": 0.5}),
        trial(0, "complete", 0.25, 50, {"60": 0.25}),
        trial(1, "stopped", None, 10, {"20": 0.9}),
        trial(3, "duplicate", 0.5, 100, {"60": 0.5}),
    ]
    assert [trained_steps(r) for r in records] == [60, 60, 20, 0]
    found = course(records, 199)
    assert [(p["trial"], p["steps"]) for p in found] == [(0, 60), (2, 140)]
    # Down to 0.25, the lowest score, and 200 parameters: the better trial alone dominates an area.
    assert [p["hypervolume"] for p in found] == [0.0, 0.25 * 100]
    assert course(records[2:], 199) == []

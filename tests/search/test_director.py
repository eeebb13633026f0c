from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.searching import EFFORT, Stage, rank_of

from autopeft.search.api import _finish
from autopeft.search.jobs import DONE, Job, JobResult
from autopeft.search.runfolder import RunFolder

Make = Callable[..., Stage]


def honest(job: Job) -> JobResult:
    """Score grows with the rank; a job that is to keep its weights does when it is good enough."""
    score = rank_of(job) / 1000 + job.seed / 1e6
    files = {"w": job.id.encode()} if job.keep_above is not None and score > job.keep_above else {}
    return JobResult(job.id, scores=dict.fromkeys(job.splits, score), seconds=2.0, files=files)


def test_a_whole_search_runs_every_job_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    kinds = Counter(job.kind for job in stage.jobs)
    assert kinds == {"trial": 5, "confirm": 4, "baseline": 4, "test": 2}
    assert len({job.id for job in stage.jobs}) == len(stage.jobs)
    assert stage.director.next() is DONE
    assert [r.label for r in stage.records] == [r.label for r in stage.events.records]
    assert len(stage.records) == len(stage.jobs)


def test_only_the_winner_and_the_baselines_see_test_and_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    winner = stage.director.winner
    assert winner is not None
    tested = [job for job in stage.jobs if "test" in job.splits]
    assert Counter((job.kind, job.seed) for job in tested) == Counter(
        [(kind, seed) for kind in ("test", "baseline") for seed in (1000, 1001)]
    )
    assert all(job.recipe == winner.recipe for job in tested if job.kind == "test")
    contender = winner.contender()
    assert len(contender.select) == len(contender.test) == 2
    assert [len(b.test) for b in stage.director.baselines()] == [2]


def test_the_winner_is_the_best_on_fresh_seeds_not_in_the_search(make_stage: Make) -> None:
    stage = make_stage()
    champion: list[int] = []

    def flattering(job: Job) -> JobResult:
        result = honest(job)
        if job.kind == "confirm":
            champion.append(rank_of(job))
            result.scores = {"select": 1.0 - rank_of(job) / 1000}
        return result

    stage.play(flattering)
    winner = stage.director.winner
    assert winner is not None
    assert winner.recipe["layers"][0]["attach"][0]["lora"]["rank"] == min(champion) < max(champion)


def test_the_tested_weights_are_those_of_the_confirmed_runs(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    for job in (j for j in stage.jobs if j.kind == "test"):
        assert job.files == {"w": job.id.removeprefix("test-").encode()}


def test_fresh_seeds_are_not_the_searchs(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    assert {j.seed for j in stage.jobs if j.kind == "trial"}.isdisjoint(
        {j.seed for j in stage.jobs if j.kind == "confirm"}
    )


def test_the_baseline_runs_at_the_rate_that_select_chose(make_stage: Make) -> None:
    stage = make_stage()

    def outcome(job: Job) -> JobResult:
        result = honest(job)
        if job.kind == "baseline":
            result.scores = dict.fromkeys(
                job.splits, job.recipe["training"]["learning_rate"] if "training" in job.recipe else 0
            )
        return result

    stage.play(outcome)
    finals = [j for j in stage.jobs if j.kind == "baseline" and "test" in j.splits]
    assert [j.recipe["training"]["learning_rate"] for j in finals] == [2e-3, 2e-3]


def test_a_failed_trial_is_recorded_and_the_search_goes_on(make_stage: Make) -> None:
    stage = make_stage()

    def outcome(job: Job) -> JobResult:
        if job.id == "trial-1":
            return JobResult(job.id, error="boom", failure="failed")
        return honest(job)

    stage.play(outcome)
    failed = [r for r in stage.records if r.state == "failed"]
    assert [(r.number, r.error) for r in failed] == [(1, "boom")]
    assert stage.director.winner is not None


def test_when_all_trials_fail_nothing_more_is_trained(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=20))
    stage.play(lambda job: JobResult(job.id, error=f"boom {job.id}", failure="failed"))
    assert stage.director.first_error == "boom trial-0"
    assert {j.kind for j in stage.jobs} <= {"trial", "baseline"}
    assert 5 <= sum(j.kind == "trial" for j in stage.jobs) <= 6, "a search that only fails should stop early"
    assert stage.director.baselines() == []
    assert stage.director.winner is None


def test_finalists_that_all_fail_leave_no_winner(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(
        lambda j: JobResult(j.id, error="boom", failure="failed") if j.kind == "confirm" else honest(j)
    )
    assert stage.director.winner is None
    assert stage.director.study.best()


def test_a_finalist_that_fails_on_one_seed_loses(make_stage: Make) -> None:
    stage = make_stage()
    best: list[int] = []

    def outcome(job: Job) -> JobResult:
        if job.kind == "confirm":
            best.append(rank_of(job))
        if job.kind == "confirm" and job.seed == 1001 and rank_of(job) == max(best):
            return JobResult(job.id, error="boom", failure="non_finite")
        return honest(job)

    stage.play(outcome)
    winner = stage.director.winner
    assert winner is not None
    assert len(winner.good) == 2


def test_an_exhausted_space_goes_on_to_the_finals(make_stage: Make) -> None:
    stage = make_stage(ranks=(1, 2))
    stage.play(honest)
    assert stage.director.exhausted
    assert Counter(j.kind for j in stage.jobs)["trial"] == 2
    assert stage.director.winner is not None


def test_duplicates_are_recorded_but_not_trained(make_stage: Make) -> None:
    stage = make_stage(ranks=(1, 2))
    stage.play(honest)
    duplicates = [r for r in stage.records if r.state == "duplicate"]
    assert duplicates
    assert all(r.duplicate_of is not None for r in duplicates)


def test_the_weights_of_the_best_trial_so_far_are_kept(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    best = max((j for j in stage.jobs if j.kind == "trial"), key=rank_of)
    assert stage.vault.held["best"] == {"w": best.id.encode()}
    thresholds = [j.keep_above for j in stage.jobs if j.kind == "trial"]
    assert all(t is not None for t in thresholds)
    assert thresholds == sorted(thresholds, key=lambda t: t or 0.0)


def test_an_interruption_keeps_what_was_finished(make_stage: Make) -> None:
    stage = make_stage()
    director = stage.director
    first, second = director.next(), director.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    director.complete(honest(first))
    director.interrupt()
    assert director.stopped
    assert director.next() is DONE
    director.abandon()
    records = {r.number: r for r in stage.records}
    assert records[0].state == "complete"
    assert (records[1].state, records[1].failure) == ("failed", "stopped")
    assert director.first_error is None
    assert stage.vault.held["best"]


def test_results_that_came_already_change_nothing(make_stage: Make) -> None:
    stage = make_stage()
    job = stage.director.next()
    assert isinstance(job, Job)
    stage.director.complete(honest(job))
    stage.director.complete(replace_score(honest(job), 9.0))
    stage.director.complete(JobResult("never-given", scores={"select": 9.0}))
    assert len(stage.records) == 1
    assert stage.director.study.best()[0].score == honest(job).score


def replace_score(result: JobResult, score: float) -> JobResult:
    result.scores = {"select": score}
    return result


@pytest.mark.parametrize(("seconds", "trials"), [(1e6, 5), (30.0, 4), (1.0, 2)])
def test_the_time_budget_leaves_room_for_the_finals(make_stage: Make, seconds: float, trials: int) -> None:
    now = [0.0]
    stage = make_stage(seconds=seconds, clock=lambda: now[0])

    def slow(job: Job) -> JobResult:
        now[0] += 5.0
        result = honest(job)
        result.seconds = 10.0
        return result

    stage.play(slow)
    assert Counter(j.kind for j in stage.jobs)["trial"] == trials
    assert stage.director.out_of_time == (trials < 5)
    assert stage.director.winner is not None


def test_progress_reports_time_left(make_stage: Make) -> None:
    stage = make_stage()
    one, two = stage.director.next(), stage.director.next()
    assert isinstance(one, Job)
    assert isinstance(two, Job)
    stage.director.progress(one.id, 5, 0.7)
    stage.director.complete(honest(one))
    stage.director.progress(two.id, 1, 0.7)
    stage.director.progress(two.id, 9, 0.7)
    steps: list[Any] = [e for e in stage.events.seen if e[0] == "step"]
    assert steps[0][3] is None
    assert 0 < steps[2][3] < steps[1][3]


def test_of_equal_trials_recipe_and_weights_are_of_the_same_one(make_stage: Make, tmp_path: Path) -> None:
    """The first of two equal trials keeps its weights; the study would rank the smaller, later one first."""
    stage = make_stage(ranks=(9, 2))
    director = stage.director
    first, second = director.next(), director.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    for job in sorted((first, second), key=rank_of, reverse=True):
        director.complete(replace_score(honest(job), 0.5))
    director.interrupt()
    director.abandon()
    kept = director.study.get(director.kept or 0)
    assert director.study.best()[0].number != kept.number
    ready: Any = SimpleNamespace(task=SimpleNamespace(metric="accuracy", source=SimpleNamespace(notice=None)))
    folder = RunFolder.create("t", "key", root=tmp_path / "runs", out=None)
    result = _finish(ready, folder, director, 1.0)
    assert result.winner.to_dict() == kept.recipe
    assert (folder.winner / "w").read_bytes() == f"trial-{kept.number}".encode()

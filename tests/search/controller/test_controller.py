from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.searching import EFFORT, Stage, rank_of, until

from autopeft.runs.folder import RunFolder
from autopeft.search.controller.finish import finish
from autopeft.search.core.jobs import DONE, Job, JobResult, TrainJob
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.strategies import trials

Make = Callable[..., Stage]


def honest(job: Job) -> JobResult:
    """Score grows with the rank; a job that is to keep its weights does when it is good enough."""
    score = rank_of(job) / 1000 + job.seed / 1e6
    keep_above = job.keep_above if isinstance(job, TrainJob) else None
    files = {"w": job.id.encode()} if keep_above is not None and score > keep_above else {}
    return JobResult(job.id, scores=dict.fromkeys(job.splits, score), seconds=2.0, files=files)


def test_a_whole_search_runs_every_job_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    kinds = Counter(job.kind for job in stage.jobs)
    assert kinds == {"trial": 5, "confirm": 4, "baseline": 4, "test": 2}
    assert len({job.id for job in stage.jobs}) == len(stage.jobs)
    assert stage.controller.next() is DONE
    assert [r.label for r in stage.records] == [r.label for r in stage.events.records]
    assert len(stage.records) == len(stage.jobs)


def test_only_the_winner_and_the_baselines_see_test_and_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    winner = stage.controller.confirmation.winner
    assert winner is not None
    tested = [job for job in stage.jobs if "test" in job.splits]
    assert Counter((job.kind, job.seed) for job in tested) == Counter(
        [(kind, seed) for kind in ("test", "baseline") for seed in (1000, 1001)]
    )
    assert all(job.recipe == winner.recipe for job in tested if job.kind == "test")
    contender = winner.contender()
    assert len(contender.select) == len(contender.test) == 2
    assert [len(b.test) for b in stage.controller.confirmation.baselines()] == [2]


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
    winner = stage.controller.confirmation.winner
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
    assert stage.controller.confirmation.winner is not None


def test_when_all_trials_fail_nothing_more_is_trained(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=20))
    stage.play(lambda job: JobResult(job.id, error=f"boom {job.id}", failure="failed"))
    assert stage.controller.first_error == "boom trial-0"
    assert {j.kind for j in stage.jobs} <= {"trial", "baseline"}
    assert 5 <= sum(j.kind == "trial" for j in stage.jobs) <= 6, "a search that only fails should stop early"
    assert stage.controller.confirmation.baselines() == []
    assert stage.controller.confirmation.winner is None


def test_finalists_that_all_fail_leave_no_winner(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(
        lambda j: JobResult(j.id, error="boom", failure="failed") if j.kind == "confirm" else honest(j)
    )
    assert stage.controller.confirmation.winner is None
    assert stage.controller.strategy.study.best()


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
    winner = stage.controller.confirmation.winner
    assert winner is not None
    assert len(winner.good) == 2


def test_an_exhausted_space_goes_on_to_the_finals(make_stage: Make) -> None:
    stage = make_stage(ranks=(1, 2))
    stage.play(honest)
    assert stage.controller.strategy.exhausted
    assert Counter(j.kind for j in stage.jobs)["trial"] == 2
    assert stage.controller.confirmation.winner is not None


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
    assert stage.checkpoints.held["best"] == {"w": best.id.encode()}
    thresholds = [j.keep_above for j in stage.jobs if j.kind == "trial"]
    assert all(t is not None for t in thresholds)
    assert thresholds == sorted(thresholds, key=lambda t: t or 0.0)


def test_an_interruption_keeps_what_was_finished(make_stage: Make) -> None:
    stage = make_stage()
    controller = stage.controller
    first, second = controller.next(), controller.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    controller.complete(honest(first))
    controller.interrupt()
    assert controller.stopped
    assert controller.next() is DONE
    controller.abandon()
    records = {r.number: r for r in stage.records}
    assert records[0].state == "complete"
    assert (records[1].state, records[1].failure) == ("failed", "stopped")
    assert controller.first_error is None
    assert stage.checkpoints.held["best"]


def test_results_that_came_already_change_nothing(make_stage: Make) -> None:
    stage = make_stage()
    job = stage.controller.next()
    assert isinstance(job, Job)
    stage.controller.complete(honest(job))
    stage.controller.complete(replace_score(honest(job), 9.0))
    stage.controller.complete(JobResult("never-given", scores={"select": 9.0}))
    assert len(stage.records) == 1
    assert stage.controller.strategy.study.best()[0].score == honest(job).score


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
    assert stage.controller.strategy.out_of_time == (trials < 5)
    assert stage.controller.confirmation.winner is not None


def test_progress_reports_time_left(make_stage: Make) -> None:
    stage = make_stage()
    one, two = stage.controller.next(), stage.controller.next()
    assert isinstance(one, Job)
    assert isinstance(two, Job)
    stage.controller.progress(one.id, 5, 0.7)
    stage.controller.complete(honest(one))
    stage.controller.progress(two.id, 1, 0.7)
    stage.controller.progress(two.id, 9, 0.7)
    steps: list[Any] = [e for e in stage.events.seen if e[0] == "step"]
    assert steps[0][3] is None
    assert 0 < steps[2][3] < steps[1][3]


def test_of_equal_trials_recipe_and_weights_are_of_the_same_one(make_stage: Make, tmp_path: Path) -> None:
    """The first of two equal trials keeps its weights; the study would rank the smaller, later one first."""
    stage = make_stage(ranks=(9, 2))
    chief = stage.controller
    first, second = chief.next(), chief.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    for job in sorted((first, second), key=rank_of, reverse=True):
        chief.complete(replace_score(honest(job), 0.5))
    chief.interrupt()
    chief.abandon()
    kept = chief.strategy.study.get(chief.kept or 0)
    assert chief.strategy.study.best()[0].number != kept.number
    ready: Any = SimpleNamespace(
        task=SimpleNamespace(metric="accuracy", source=SimpleNamespace(notice=None)),
        limits=(0, 1000),
        arguments=SimpleNamespace(seed=0),
    )
    folder = RunFolder.create("t", "key", root=tmp_path / "runs", out=None)
    result = finish(ready, folder, chief, 1.0)
    assert result.winner.to_dict() == kept.recipe
    assert (folder.winner / "w").read_bytes() == f"trial-{kept.number}".encode()


RUNGS = Rungs((2, 5, 10), (0.2, 0.5, 1.0))


def climbing(job: Job) -> JobResult:
    """`honest`, but a trial pauses where it is told to, with a checkpoint that says how far it came."""
    result = honest(job)
    if until(job) is not None:
        result.paused, result.files = True, {"checkpoint": f"{job.number}@{job.until}".encode()}
    return result


def test_trials_go_on_from_their_checkpoints_and_only_the_best_reach_the_end(make_stage: Make) -> None:
    effort = replace(EFFORT, trials=12, top=2)
    stage = make_stage(effort=effort, rungs=RUNGS)
    stage.play(climbing)
    legs = [j for j in stage.jobs if j.kind == "trial"]
    first = [j for j in legs if j.until == 2]
    assert len(first) == 12
    assert all(j.files is None and j.share == 0.2 and j.keep_above is None for j in first)
    for job in legs:
        if job.until == 5:
            assert job.files == {"checkpoint": f"{job.number}@2".encode()}
        if job.until is None:
            assert job.files == {"checkpoint": f"{job.number}@5".encode()}
            assert (job.share, job.steps) == (1.0, 10)
            assert job.keep_above is not None
    full = [j for j in legs if j.until is None]
    assert 2 <= len(full) < len([j for j in legs if j.until == 5]) < 12
    states = Counter(r.state for r in stage.records if r.kind == "trial")
    assert states == {"complete": len(full), "stopped": 12 - len(full)}
    assert {j.number for j in stage.jobs if j.kind == "confirm"} <= {j.number for j in full}
    # No checkpoint is left behind.
    assert not [k for k in stage.checkpoints.held if k.startswith("trial-")]


def test_checkpoints_that_can_never_be_used_are_not_kept(make_stage: Make) -> None:
    effort = replace(EFFORT, trials=30, top=1)
    stage = make_stage(effort=effort, rungs=RUNGS)
    most = 0

    def counting(job: Job) -> JobResult:
        nonlocal most
        most = max(most, sum(k.startswith("trial-") for k in stage.checkpoints.held))
        return climbing(job)

    stage.play(counting)
    assert 0 < most <= 30 // 3 + 30 // 9 + 2


@pytest.mark.parametrize("room", [60, 0])
def test_checkpoints_take_no_more_room_than_they_may(
    make_stage: Make, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Ten bytes each: six may lie there, or the three that are kept in any case, which mostly suffices."""
    monkeypatch.setattr(trials, "_ROOM", room)
    monkeypatch.setattr(trials, "_ROOM_EACH", 0)
    effort = replace(EFFORT, trials=60, top=1)
    stage = make_stage(effort=effort, rungs=RUNGS)
    most, anew = 0, 0

    def counting(job: Job) -> JobResult:
        nonlocal most, anew
        most = max(most, sum(k.startswith("trial-") for k in stage.checkpoints.held))
        anew += job.kind == "trial" and job.until != 2 and job.files is None
        result = climbing(job)
        result.files = dict.fromkeys(result.files, b"ten bytes.")
        return result

    stage.play(counting, workers=1)
    assert most == (6 if room else 3)
    legs = [j for j in stage.jobs if j.kind == "trial" and j.until != 2]
    assert anew <= len(legs) // 4
    assert len(stage.jobs) > 60


def test_a_search_goes_on_where_it_was_cut_off(make_stage: Make) -> None:
    effort = replace(EFFORT, trials=12, top=2)
    whole = make_stage(effort=effort, rungs=RUNGS)
    for _ in range(9):
        job = whole.controller.next()
        assert isinstance(job, Job)
        whole.jobs.append(job)
        whole.controller.complete(climbing(job))
    lost = whole.controller.next()  # and here the process is killed
    assert isinstance(lost, Job)
    finished = {(j.number, until(j)) for j in whole.jobs}

    again = make_stage(effort=effort, rungs=RUNGS)
    again.checkpoints.held.update(whole.checkpoints.held)
    again.play(climbing)
    redone = {(j.number, j.until) for j in again.jobs if j.kind == "trial"}
    assert not redone & finished
    counted = [
        r for r in again.controller.strategy.study.records() if r.failure != "lost" and r.state != "duplicate"
    ]
    assert len(counted) == 12
    assert {r.state for r in counted} == {"complete", "stopped"}
    for job in again.jobs:
        if job.kind == "trial" and job.until != 2:
            assert job.files is not None
    hashes = [r.hash for r in counted]
    assert len(set(hashes)) == 12


def test_a_trial_whose_checkpoint_is_gone_starts_anew(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=3, top=1), rungs=RUNGS)
    for _ in range(3):
        job = stage.controller.next()
        assert isinstance(job, Job)
        stage.controller.complete(climbing(job))
    stage.checkpoints.held.clear()
    job = stage.controller.next()
    assert isinstance(job, Job)
    assert (job.until, job.files) == (5, None)


def test_a_lost_job_is_given_out_again_and_fails_in_the_end(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=2))
    attempts: Counter[str] = Counter()

    def fragile(job: Job) -> JobResult:
        attempts[job.id] += 1
        if job.id == "trial-0" or (job.kind == "confirm" and attempts[job.id] < 3):
            return JobResult(job.id, error="The worker died.", failure="lost")
        return honest(job)

    stage.play(fragile)
    assert attempts["trial-0"] == 3
    assert [j.attempt for j in stage.jobs if j.id == "trial-0"] == [0, 1, 2]
    failed = [r for r in stage.records if r.state == "failed"]
    assert [(r.label, r.failure) for r in failed] == [("trial 0", "lost")]
    winner = stage.controller.confirmation.winner
    assert winner is not None
    assert len(winner.contender().select) == 2


def test_what_an_earlier_process_finished_after_the_search_is_not_run_again(make_stage: Make) -> None:
    first = make_stage()
    first.play(honest)
    kept = {j.id: honest(j) for j in first.jobs if j.kind != "trial"}
    del kept["baseline-0-s1001"]
    again = make_stage(recall=lambda job: kept.get(job.id))
    again.play(honest)
    assert [j.id for j in again.jobs] == ["baseline-0-s1001"]
    before, after = first.controller.confirmation, again.controller.confirmation
    assert before.winner is not None
    assert after.winner is not None
    assert after.winner.contender() == before.winner.contender()
    assert after.baselines() == before.baselines()
    assert [r.kept for r in again.records if r.kind != "trial"].count(False) == 1


def test_an_interrupted_trial_waits_on_its_rung(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=3, top=1), rungs=RUNGS)
    for _ in range(3):
        job = stage.controller.next()
        assert isinstance(job, Job)
        stage.controller.complete(climbing(job))
    running = stage.controller.next()
    assert isinstance(running, Job)
    assert running.until == 5
    stage.controller.interrupt()
    stage.controller.abandon()
    assert not stage.controller.finished
    assert len(stage.controller.strategy.study.paused) == 3
    assert stage.records == []


def test_two_objectives_keep_small_recipes_going(make_stage: Make, tmp_path: Path) -> None:
    effort = replace(EFFORT, trials=12, top=1)
    numbers = []
    for objectives in (1, 2):
        stage = make_stage(effort=effort, rungs=RUNGS, objectives=objectives)
        stage.play(climbing)
        full = [rank_of(j) for j in stage.jobs if j.kind == "trial" and j.until is None]
        numbers.append(min(full))
        (tmp_path / "journal.log").unlink()
    assert numbers[1] < numbers[0]

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.searching import EFFORT, Stage, climbing, honest, lora, rank_of

from autopeft.hybrid.store import WEIGHTS
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import DONE, Job, JobResult, ScoreJob, TrainJob
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.selection.baselines import Baseline

Make = Callable[..., Stage]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_whole_search_runs_every_job_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    kinds = Counter(job.kind for job in stage.jobs)
    assert kinds == {"trial": 5, "confirm": 4, "baseline": 6, "test": 2}
    assert len({job.id for job in stage.jobs}) == len(stage.jobs)
    assert stage.controller.next() is DONE
    assert [r.label for r in stage.records] == [r.label for r in stage.events.records]
    assert len(stage.records) == len(stage.jobs)


def test_only_the_winner_and_the_baselines_see_test_and_once(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    winner = stage.controller.selection.winner
    assert winner is not None
    tested = [job for job in stage.jobs if "test" in job.splits]
    assert Counter((job.kind, job.seed) for job in tested) == Counter(
        [(kind, seed) for kind in ("test", "baseline") for seed in (1000, 1001)]
    )
    assert all(job.recipe == winner.recipe for job in tested if job.kind == "test")
    contender = winner.contender()
    assert len(contender.select) == len(contender.test) == 2
    assert [len(b.runs.contender().test) for b in stage.controller.selection.baselines] == [2]


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
    winner = stage.controller.selection.winner
    assert winner is not None
    assert winner.recipe["layers"][0]["attach"][0]["lora"]["rank"] == min(champion) < max(champion)


def test_the_tested_weights_are_those_of_the_confirmed_runs(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    for job in (j for j in stage.jobs if j.kind == "test"):
        assert job.files == {WEIGHTS: job.id.removeprefix("test-").encode()}


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
    assert stage.controller.selection.winner is not None


def test_when_all_trials_fail_nothing_more_is_trained(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=20))
    stage.play(lambda job: JobResult(job.id, error=f"boom {job.id}", failure="failed"))
    assert stage.controller.first_error == "boom trial-0"
    assert {j.kind for j in stage.jobs} <= {"trial", "baseline"}
    assert 5 <= sum(j.kind == "trial" for j in stage.jobs) <= 6, "a search that only fails should stop early"
    assert not any(b.runs.runs for b in stage.controller.selection.baselines)
    assert stage.controller.selection.winner is None


def test_finalists_that_all_fail_leave_no_winner(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(
        lambda j: JobResult(j.id, error="boom", failure="failed") if j.kind == "confirm" else honest(j)
    )
    assert stage.controller.selection.winner is None
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
    winner = stage.controller.selection.winner
    assert winner is not None
    assert len(winner.good) == 2


def test_an_exhausted_space_goes_on_to_the_finals(make_stage: Make) -> None:
    stage = make_stage(ranks=(1, 2))
    stage.play(honest)
    assert stage.controller.strategy.exhausted
    assert Counter(j.kind for j in stage.jobs)["trial"] == 2
    assert stage.controller.selection.winner is not None


def test_the_weights_of_the_best_trial_so_far_are_kept(make_stage: Make) -> None:
    stage = make_stage()
    stage.play(honest)
    best = max((j for j in stage.jobs if j.kind == "trial"), key=rank_of)
    held = {key: files for key, files in stage.checkpoints.held.items() if key.startswith("best-")}
    assert held == {f"best-{best.number}": {WEIGHTS: best.id.encode()}}
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
    assert (records[1].state, records[1].failure) == ("interrupted", "stopped")
    assert controller.first_error is None
    assert stage.checkpoints.held["best-0"]


def test_with_grace_running_jobs_come_to_their_end_and_none_is_begun(make_stage: Make) -> None:
    clock = Clock()
    controller = make_stage(grace=30.0, clock=clock).controller
    first, second = controller.next(), controller.next()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    controller.interrupt()
    assert controller.next() is DONE
    assert not controller.stopped
    controller.complete(honest(first))
    assert not controller.stopped
    clock.now = 29.0
    assert not controller.stopped
    clock.now = 30.0
    assert controller.stopped
    again = make_stage(grace=30.0, clock=clock).controller
    job = again.next()
    assert isinstance(job, Job)
    again.interrupt()
    assert not again.stopped
    again.complete(honest(job))
    assert again.stopped, "nothing is waited for"
    third = make_stage(grace=30.0, clock=clock).controller
    third.next()
    third.interrupt()
    third.interrupt()
    assert third.stopped, "a second signal"


def test_without_grace_an_interruption_stops_at_once(make_stage: Make) -> None:
    controller = make_stage().controller
    controller.next()
    controller.interrupt()
    assert controller.stopped


def test_a_job_that_is_lost_in_an_interruption_was_cut_off(make_stage: Make) -> None:
    """Its worker may have heard of the signal too."""
    stage = make_stage(grace=30.0)
    job = stage.controller.next()
    assert isinstance(job, Job)
    stage.controller.interrupt()
    stage.controller.complete(JobResult(job.id, error="killed", failure="lost"))
    assert [(r.state, r.failure) for r in stage.records] == [("interrupted", "stopped")]


def test_results_that_came_already_change_nothing(make_stage: Make) -> None:
    stage = make_stage()
    job = stage.controller.next()
    assert isinstance(job, Job)
    stage.controller.complete(honest(job))
    stage.controller.complete(replace(honest(job), scores={"select": 9.0}))
    stage.controller.complete(JobResult("never-given", scores={"select": 9.0}))
    assert len(stage.records) == 1
    assert stage.controller.strategy.study.best()[0].score == honest(job).score


@pytest.mark.parametrize(("seconds", "trials"), [(1e6, 5), (30.0, 3), (1.0, 2)])
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
    assert stage.controller.selection.winner is not None


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
    winner = stage.controller.selection.winner
    assert winner is not None
    assert len(winner.contender().select) == 2


def test_what_an_earlier_process_finished_after_the_search_is_not_run_again(make_stage: Make) -> None:
    first = make_stage()
    first.play(honest)
    kept = {j.id: honest(j) for j in first.jobs if j.kind != "trial"}
    del kept["baseline-0-0-s1001"]
    again = make_stage(recall=lambda job: kept.get(job.id))
    again.play(honest)
    assert [j.id for j in again.jobs] == ["baseline-0-0-s1001"]
    before, after = first.controller.selection, again.controller.selection
    assert before.winner is not None
    assert after.winner is not None
    assert after.winner.contender() == before.winner.contender()
    ours, theirs = ([b.runs.contender() for b in side.baselines] for side in (after, before))
    assert ours == theirs
    assert [r.kept for r in again.records if r.kind != "trial"].count(False) == 1


def test_a_finalist_that_was_cut_off_decides_nothing(make_stage: Make) -> None:
    """Not even where its other seed had ended, and no other finalist is left."""
    stage = make_stage(replace(EFFORT, top=1), baselines=[])

    def until_confirmed(job: Job) -> JobResult:
        if job.kind == "confirm" and job.seed > 1000:
            stage.controller.interrupt()
            return JobResult(job.id, error="stopped", failure="stopped")
        return honest(job)

    stage.play(until_confirmed, workers=1)
    assert [r.state for r in stage.records if r.kind == "confirm"] == ["complete", "interrupted"]
    assert stage.controller.selection.winner is None


NORMAL = replace(EFFORT, trials=40, steps=200, top=3, seeds=3)
LORA, SINGLE, RANDOM = "LoRA", "best single method", "random hybrids"


def candidates(first: int, count: int) -> tuple[Any, ...]:
    return tuple(lora(rank).to_dict() for rank in range(first, first + count))


def normal_baselines() -> list[Baseline]:
    return [
        Baseline(LORA, candidates(100, 12), {}),
        Baseline(SINGLE, candidates(200, 22), {}, kind="single"),
        Baseline(RANDOM, candidates(300, 3), {}, kind="random", each=True),
    ]


class Timed:
    """Plays a search whose full trainings take 20 seconds each, one after the other."""

    def __init__(self, make_stage: Make, effort: Any = NORMAL, **more: Any) -> None:
        self.clock = more.setdefault("clock", Clock())
        self.stage = make_stage(effort, baselines=normal_baselines(), **more)
        self.stage.controller.scale(1)

    def outcome(self, job: Job) -> JobResult:
        seconds = 4.0 if job.kind == "test" else 20.0
        self.clock.now += seconds
        score = rank_of(job) % 100 / 1000 + job.seed / 1e6
        return replace(honest(job), scores=dict.fromkeys(job.splits, score), seconds=seconds)

    def play(self) -> Counter[str]:
        self.stage.play(self.outcome, workers=1)
        return Counter(job.kind for job in self.stage.jobs)


@pytest.mark.parametrize("minutes", [8, 10, 20, 30])
def test_baselines_keep_to_the_time_budget_too(make_stage: Make, minutes: int) -> None:
    timed = Timed(make_stage, seconds=60.0 * minutes)
    kinds = timed.play()
    assert 0.75 * minutes <= timed.clock.now / 60 <= minutes
    assert kinds["trial"] >= 4
    stages = timed.stage.controller.selection.baselines
    shown = {LORA, SINGLE, RANDOM}.difference(b.runs.name for b in stages if b.left_out)
    assert {b.runs.name for b in stages if b.runs.runs} == shown
    assert LORA in shown
    shown_runs = [b.runs.contender() for b in stages if b.runs.runs]
    assert all(c.test and None not in c.by_seed.values() for c in shown_runs)


def test_trials_but_the_first_two_have_to_end_in_time(make_stage: Make) -> None:
    timed = Timed(make_stage, seconds=1200.0)
    timed.play()
    limits = [job.within for job in timed.stage.jobs if isinstance(job, TrainJob) and job.kind == "trial"]
    assert limits[:2] == [None, None]
    assert len(limits) > 4
    assert all(limit is not None and 40.0 <= limit < 1200.0 for limit in limits[2:])
    others = [job for job in timed.stage.jobs if isinstance(job, TrainJob) and job.kind != "trial"]
    assert all(job.within is None for job in others)


def test_with_rungs_the_best_are_not_given_up_where_time_is_short(make_stage: Make) -> None:
    """Parts take as long as they have steps, and are given up as a worker would give them up."""
    clock, full = Clock(), 60.0
    effort = replace(EFFORT, trials=30, steps=90, top=2)
    rungs = Rungs((10, 30, 90), (1 / 9, 1 / 3, 1.0))
    stage = make_stage(effort, rungs=rungs, baselines=[], seconds=600.0, clock=clock)
    stage.controller.scale(1)
    given_up: list[str] = []

    def outcome(job: Job) -> JobResult:
        assert isinstance(job, (TrainJob, ScoreJob))
        if not stage.controller.strategy.candidates(1):
            assert isinstance(job, TrainJob)
            assert job.within is None, "one has to be trained to the end"
        steps = (job.until or job.steps) - job.start if isinstance(job, TrainJob) else 0
        seconds = full * steps / 90 + 1.0
        clock.now += seconds
        if isinstance(job, TrainJob) and job.within is not None and seconds > job.within:
            given_up.append(job.id)
            return JobResult(job.id, error="It was given up", failure="failed", seconds=seconds)
        return replace(climbing(job), seconds=seconds)

    stage.play(outcome, workers=1)
    assert given_up == []
    assert len(stage.controller.strategy.candidates(9)) >= 2
    assert stage.controller.strategy.launched > 5
    assert clock.now < 660


def test_with_enough_time_nothing_is_left_out(make_stage: Make) -> None:
    kinds = Timed(make_stage, seconds=1e6).play()
    assert kinds == {"trial": 40, "confirm": 9, "baseline": 12 + 6 + 3 + 22 + 6 + 3 + 3, "test": 3}


def test_what_decides_comes_before_what_is_shown_beside_it(make_stage: Make) -> None:
    """So that it is what remains where jobs take longer than was foreseen."""
    timed = Timed(make_stage)
    timed.play()
    order = [job.kind for job in timed.stage.jobs if rank_of(job) < 200]
    assert [job.kind for job in timed.stage.jobs[: len(order)]] == order


def test_a_process_that_goes_on_knows_how_long_jobs_take(make_stage: Make) -> None:
    """All trials had ended: none is timed again, and the finals are shortened all the same."""
    first = Timed(make_stage)
    first.stage.play(first.outcome, workers=1)
    trials = first.stage.controller.strategy.records()
    assert sum(record.state == "complete" for record in trials) == 40
    again = Timed(make_stage, seconds=600.0)
    again.play()
    assert again.clock.now <= 600.0
    past = [r for r in first.stage.records if r.kind in ("confirm", "test")]
    known = {r.job: r for r in past}

    def recall(job: Job) -> JobResult | None:
        return honest(job) if job.id in known else None

    more = Timed(make_stage, seconds=600.0, recall=recall, past=past)
    more.play()
    effort = more.stage.controller.effort
    assert (effort.top, effort.seeds) == (3, 3), "what is done already costs nothing"


def test_known_baselines_are_no_work_to_come(make_stage: Make) -> None:
    """A second search on a task has the whole time for its trials and finalists."""

    def recall(job: Job) -> JobResult | None:
        score = rank_of(job) % 100 / 1000
        return JobResult(job.id, dict.fromkeys(job.splits, score)) if job.kind == "baseline" else None

    timed = Timed(make_stage, seconds=800.0, recall=recall)
    kinds = timed.play()
    effort = timed.stage.controller.effort
    assert (effort.top, effort.seeds) == (3, 3)
    assert 28 <= kinds["trial"] < 32, "40 would leave 0 of 800 s for 9 finalists' runs and the test"
    assert not any(b.left_out for b in timed.stage.controller.selection.baselines)
    assert 700 < timed.clock.now <= 800.0


def test_a_resumed_search_with_a_time_budget_ends_as_if_it_had_not_stopped(make_stage: Make) -> None:
    """Trained for half of the time, it does not search again for half of what is left."""
    now, effort = [0.0], replace(EFFORT, trials=40, top=3, seeds=3)

    def ran(spent: float, past: Sequence[TrialRecord] = (), *, ends: int = 1000) -> Stage:
        stage = make_stage(effort, baselines=[], seconds=600.0, spent=spent, clock=lambda: now[0], past=past)
        stage.controller.scale(1)
        while isinstance(job := stage.controller.next(), Job):
            if sum(j.kind == "confirm" for j in stage.jobs) >= ends:
                break
            stage.jobs.append(job)
            took = 20.0 if job.steps else 2.0
            now[0] += took
            stage.controller.complete(replace(honest(job), seconds=took))
        return stage

    first = ran(0.0, ends=4)
    searched, spent = Counter(job.kind for job in first.jobs)["trial"], now[0]
    assert 5 < searched < 40
    second = ran(spent, [record for record in first.records if record.kind != "trial"])
    assert not [job for job in second.jobs if job.kind == "trial"]
    assert [f.number for f in second.controller.selection.finalists] == [
        f.number for f in first.controller.selection.finalists
    ]
    assert second.controller.effort.seeds == 3

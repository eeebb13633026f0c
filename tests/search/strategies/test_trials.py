"""Trials: from rung to rung, with checkpoints, and on from where an earlier process ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.searching import EFFORT, RUNGS, Stage, climbing, honest, rank_of, to_lora, until

from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.optimization.successive_halving import Rungs
from autopeft.search.space.candidate import Candidate
from autopeft.search.strategies import trials
from autopeft.search.strategies.trials import Trials

Make = Callable[..., Stage]


@pytest.fixture
def make_trials(make_stage: Make) -> Callable[..., Trials]:
    """Trials alone; no controller asks them."""

    def make(**more: object) -> Trials:
        found: Trials = make_stage(**more).controller.strategy
        return found

    return make


def to_rank(record: TrialRecord) -> int:
    (config,) = record.recipe["layers"][0]["attach"][0].values()
    return int(config["rank"])


def begin(strategy: Trials, count: int) -> None:
    """Train so many trials to their first rung."""
    for _ in range(count):
        job = strategy.next(room=True)
        assert isinstance(job, TrainJob)
        strategy.complete(job, climbing(job))


def test_a_candidate_is_begun_only_while_there_is_room(make_trials: Callable[..., Trials]) -> None:
    strategy = make_trials(effort=replace(EFFORT, trials=3))
    first = strategy.next(room=True)
    assert isinstance(first, TrainJob)
    assert (first.id, first.kind, first.number, first.until) == ("trial-0", "trial", 0, None)
    assert strategy.next(room=False) is None
    assert strategy.out_of_time
    assert not strategy.finished, "a trial is running"
    strategy.complete(first, honest(first))
    assert strategy.next(room=False) is None
    assert strategy.finished
    assert (strategy.launched, strategy.exhausted) == (1, False)
    assert [r.number for r in strategy.candidates(5)] == [0]


def test_what_was_begun_goes_on_without_room(make_trials: Callable[..., Trials]) -> None:
    strategy = make_trials(effort=replace(EFFORT, trials=3, top=1), rungs=RUNGS)
    begin(strategy, 3)
    assert [r.state for r in strategy.updates()] == ["paused"] * 3
    assert strategy.updates() == []
    job = strategy.next(room=False)
    assert isinstance(job, TrainJob)
    assert (job.start, job.until) == (2, 5)
    assert not strategy.out_of_time


def test_without_room_no_more_go_on_than_are_trained_again(make_trials: Callable[..., Trials]) -> None:
    strategy = make_trials(effort=replace(EFFORT, trials=9, top=1), rungs=RUNGS)
    begin(strategy, 9)
    while (job := strategy.next(room=False)) is not None:
        assert isinstance(job, TrainJob)
        strategy.complete(job, climbing(job))
    assert strategy.finished
    assert len(strategy.candidates(9)) == 1
    assert strategy.out_of_time, "others would have gone on"


def test_records_carry_the_seed_and_come_by_number(make_trials: Callable[..., Trials]) -> None:
    strategy = make_trials(effort=replace(EFFORT, trials=3))
    jobs = [strategy.next(room=True) for _ in range(3)]
    for job in reversed(jobs):
        assert isinstance(job, TrainJob)
        strategy.complete(job, honest(job))
    assert [(r.number, r.seed, r.state) for r in strategy.records()] == [(n, 0, "complete") for n in range(3)]
    assert [r.number for r in strategy.updates()] == [2, 1, 0]


def test_failures_in_a_row_end_the_search(make_trials: Callable[..., Trials]) -> None:
    strategy = make_trials(effort=replace(EFFORT, trials=50))
    failed = 0
    while (job := strategy.next(room=True)) is not None:
        strategy.complete(job, JobResult(job.id, error="boom", failure="failed"))
        failed += 1
    assert (failed, strategy.finished, strategy.candidates(1)) == (5, True, [])


def test_steps_of_a_whole_search_are_those_of_its_rungs(make_trials: Callable[..., Trials]) -> None:
    assert Trials.planned_steps(EFFORT, RUNGS) == pytest.approx(5 * RUNGS.expected)
    assert Trials.planned_steps(EFFORT, Rungs.of(10, "none")) == 50
    strategy = make_trials(effort=EFFORT, rungs=RUNGS)
    assert strategy.steps_left == pytest.approx(5 * RUNGS.expected)
    job = strategy.next(room=True)
    assert job is not None
    assert strategy.steps_left == pytest.approx(5 * RUNGS.expected - 2), "what runs is counted by who runs it"


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


def halves(values: dict[str, Any]) -> Candidate:
    """Recipes of even ranks train in phases, those of odd ones can pause."""
    found = to_lora(values)
    if values["rank"] % 2:
        return found
    item = {"periodic_lora": {"rank": values["rank"], "stages": 2}}
    recipe = Recipe.from_dict({"layers": [{"attach": [item]}]})
    return replace(found, recipe=recipe, hash=recipe.hash())


def by_halves(job: Job) -> JobResult:
    ((method, config),) = job.recipe["layers"][0]["attach"][0].items()
    result = JobResult(job.id, dict.fromkeys(job.splits, config["rank"] / 100))
    if until(job) is not None:
        assert method == "lora"
        result.paused, result.files = True, {"checkpoint": b"kept"}
    return result


def test_a_recipe_in_phases_is_trained_anew_to_each_rung(make_stage: Make) -> None:
    stage = make_stage(effort=replace(EFFORT, trials=12, top=3), rungs=RUNGS, repair=halves)
    stage.play(by_halves, workers=1)
    jobs = [job for job in stage.jobs if isinstance(job, TrainJob) and job.kind == "trial"]
    phased = [job for job in jobs if "periodic_lora" in str(job.recipe)]
    assert {(job.start, job.until, job.steps) for job in phased} == {(0, None, n) for n in RUNGS.steps}
    assert all(job.files is None and (job.keep_above is None) == (job.steps < 10) for job in phased)
    others = {(job.start, job.until, job.steps) for job in jobs if job not in phased}
    assert {(0, 2, 10), (2, 5, 10)} <= others
    trials = [r for r in stage.records if r.kind == "trial"]
    ended = [r for r in trials if r.state == "complete"]
    assert all(list(r.rungs) == ["2", "5", "10"] for r in ended)
    assert {r.state for r in trials} == {"complete", "stopped"}
    assert max(map(to_rank, trials)) in set(map(to_rank, ended)), "both sorts are ranked together"


def test_steps_that_begin_anew_are_counted_as_trained(make_trials: Callable[..., Trials]) -> None:
    strategy, trained = make_trials(effort=replace(EFFORT, trials=99), rungs=RUNGS, repair=halves), 0
    while True:
        job = strategy.next(room=True)
        assert isinstance(job, TrainJob)
        strategy.complete(job, by_halves(job))
        trained += (job.until or job.steps) - job.start
        if "periodic_lora" in str(job.recipe) and job.steps > 2:
            break
    assert strategy.steps_left == pytest.approx(99 * RUNGS.expected - trained)


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
        r for r in again.controller.strategy.study.records() if r.state not in ("interrupted", "duplicate")
    ]
    assert len(counted) == 12
    assert {r.state for r in counted} == {"complete", "stopped"}
    for job in again.jobs:
        if job.kind == "trial" and job.until != 2:
            assert job.files is not None
    hashes = [r.hash for r in counted]
    assert len(set(hashes)) == 12


def test_new_trials_are_measured_by_those_that_were_stopped(make_trials: Callable[..., Trials]) -> None:
    """The time of the first process was over after three trials; the second has more."""
    effort = replace(EFFORT, trials=8, top=1)
    first = make_trials(effort=effort, rungs=RUNGS)
    for i in range(60):
        job = first.next(room=i < 4)
        if job is None:
            break
        first.complete(job, climbing(job))
    states = Counter(r.state for r in first.records())
    assert states == {"complete": 1, "stopped": 2}
    again = make_trials(effort=effort, rungs=RUNGS)
    assert len(again.halving._entries[0]) == 3
    assert not again.halving.waiting, "none of them goes on"
    begun = [again.next(room=True) for _ in range(2)]
    for job in begun:
        assert isinstance(job, TrainJob)
        again.complete(job, JobResult(job.id, {"select": 0.0}, paused=True, files={"checkpoint": b"1"}))
    assert again.halving.candidate() is None, "they are the worst of five"


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


def test_what_is_proposed_depends_on_what_has_ended(make_stage: Make, tmp_path: Path) -> None:
    """A search repeats itself with one trial at a time. With several, the next one is proposed by fewer
    results."""

    def proposed(workers: int) -> list[int]:
        stage = make_stage(effort=replace(EFFORT, trials=20), sampler="tpe")
        stage.play(honest, workers=workers)
        (tmp_path / "journal.log").unlink()
        return [rank_of(job) for job in stage.jobs if job.kind == "trial"]

    assert proposed(1) == proposed(1)
    assert proposed(1) != proposed(4)


def test_duplicates_are_recorded_but_not_trained(make_stage: Make) -> None:
    stage = make_stage(ranks=(1, 2))
    stage.play(honest)
    duplicates = [r for r in stage.records if r.state == "duplicate"]
    assert duplicates
    assert all(r.duplicate_of is not None for r in duplicates)

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searching import EFFORT

from autopeft.search.controller.time_budget import TimeBudget
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.baselines import Baseline

BASELINES = [Baseline("baseline", ({}, {}), {})]


def job(kind: str = "trial", name: str = "a", steps: int = 10) -> Job:
    return TrainJob(name, kind, "x", {}, steps=steps)  # type: ignore[arg-type]


def test_nothing_is_foretold_before_the_first_trial() -> None:
    assert TimeBudget(EFFORT, BASELINES, 2).remaining(40.0, [job()]) is None


def test_time_left_is_the_work_left_over_the_workers() -> None:
    for workers in (1, 2):
        time_budget = TimeBudget(EFFORT, BASELINES, workers)
        time_budget.finished(job(), 10.0)
        # 4 trials, 4 finalists' runs, 6 baseline runs at 0.5, 2 tests at 0.2
        assert time_budget.remaining(40.0, []) == pytest.approx((40 + 40 + 30 + 4) / workers)


def test_a_running_job_counts_for_what_is_left_of_it() -> None:
    time_budget = TimeBudget(EFFORT, BASELINES, 1)
    time_budget.finished(job(), 10.0)
    whole = time_budget.remaining(30.0, [job(name="b")])
    time_budget.progress("b", 5)
    half = time_budget.remaining(30.0, [job(name="b")])
    assert whole is not None
    assert half is not None
    assert whole - half == pytest.approx(5.0)


def test_all_done_is_zero() -> None:
    time_budget = TimeBudget(EFFORT, BASELINES, 1)
    time_budget.finished(job(), 10.0)
    for kind, count in (("confirm", 4), ("baseline", 6), ("test", 2)):
        for _ in range(count):
            time_budget.finished(job(kind), 1.0)
    assert time_budget.remaining(None, []) == 0.0


def test_a_time_budget_bounds_the_estimate() -> None:
    now = [0.0]
    time_budget = TimeBudget(EFFORT, BASELINES, 1, seconds=30.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    now[0] = 20.0
    assert time_budget.remaining(40.0, []) == pytest.approx(10.0)
    now[0] = 50.0
    assert time_budget.remaining(40.0, []) == 0.0


def test_finals_shrink_to_what_the_time_allows() -> None:
    effort = replace(EFFORT, top=3, seeds=4)
    found = []
    for seconds in (1e6, 260.0, 130.0, 1.0):
        time_budget = TimeBudget(effort, BASELINES, 1, seconds=seconds, clock=lambda: 0.0)
        time_budget.finished(job(), 10.0)
        smaller = time_budget.shrink(effort, sweeps=2)
        found.append((smaller.top, smaller.seeds))
    # 10 for each finalist's run, 5 for each of the baseline's (2 sweeps), 2 for each test
    assert found == [(3, 4), (3, 4), (2, 4), (1, 2)]
    assert TimeBudget(effort, BASELINES, 1).shrink(effort, 2) == effort


def test_half_of_the_time_is_the_searchs_even_where_finals_do_not_fit() -> None:
    now = [0.0]
    time_budget = TimeBudget(EFFORT, BASELINES, 1, seconds=100.0, clock=lambda: now[0])
    time_budget.finished(job(), 10.0)
    assert time_budget.allows(2, 0)
    now[0] = 60.0
    assert not time_budget.allows(2, 0)

from __future__ import annotations

import pytest
from support.searching import EFFORT

from autopeft.search.forecast import Forecast
from autopeft.search.jobs import Job


def job(kind: str = "trial", name: str = "a", steps: int = 10) -> Job:
    return Job(name, kind, "x", {}, steps=steps)  # type: ignore[arg-type]


def test_nothing_is_foretold_before_the_first_trial() -> None:
    assert Forecast(EFFORT, 1, 2).remaining(1, [job()], True) is None


def test_time_left_is_the_work_left_over_the_workers() -> None:
    for workers in (1, 2):
        forecast = Forecast(EFFORT, 1, workers)
        forecast.finished(job(), 10.0)
        # 4 trials, 4 finalists' runs, 4 baseline runs at 0.5, 2 tests at 0.2
        assert forecast.remaining(1, [], True) == pytest.approx((40 + 40 + 20 + 4) / workers)


def test_a_running_job_counts_for_what_is_left_of_it() -> None:
    forecast = Forecast(EFFORT, 1, 1)
    forecast.finished(job(), 10.0)
    whole = forecast.remaining(2, [job(name="b")], True)
    forecast.progress("b", 5)
    half = forecast.remaining(2, [job(name="b")], True)
    assert whole is not None
    assert half is not None
    assert whole - half == pytest.approx(5.0)


def test_all_done_is_zero() -> None:
    forecast = Forecast(EFFORT, 1, 1)
    forecast.finished(job(), 10.0)
    for kind, count in (("confirm", 4), ("baseline", 4), ("test", 2)):
        for _ in range(count):
            forecast.finished(job(kind), 1.0)
    assert forecast.remaining(5, [], False) == 0.0


def test_a_time_budget_bounds_the_forecast() -> None:
    now = [0.0]
    forecast = Forecast(EFFORT, 1, 1, seconds=30.0, clock=lambda: now[0])
    forecast.finished(job(), 10.0)
    now[0] = 20.0
    assert forecast.remaining(1, [], True) == pytest.approx(10.0)
    now[0] = 50.0
    assert forecast.remaining(1, [], True) == 0.0

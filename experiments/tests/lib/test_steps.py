"""Runs of steps, and sides compared by them."""

from __future__ import annotations

import pytest
from lib.steps import StepRun, compare, told


def test_the_first_steps_are_left_out() -> None:
    run = StepRun.of(10.0, [11.0, 11.5, 11.75, 11.875], 2, 0.7)
    assert run.ms == [250.0, 125.0]
    assert run.mean == 187.5
    assert run.seconds == 1.875


def test_sides_are_told_as_times_ours() -> None:
    ticks = {"ours": [1.0, 2.0, 4.0], "other": [1.0, 4.0, 10.0]}
    found = compare({name: lambda n=name: StepRun.of(0.0, ticks[n], 1, 0.5) for name in ticks}, 2, "here")
    assert found["other"]["times_ours"]["median"] == pytest.approx(3.0)
    assert told(found["other"])[1:] == ("3.00 (3.00–3.00)", "0.500")
    assert [run["ms"] for run in found["ours"]["runs"]] == [[1000.0, 2000.0]] * 2


def test_without_ours_there_is_no_ratio() -> None:
    found = compare({"other": lambda: StepRun.of(0.0, [1.0, 2.0], 1, 0.5)}, 1, "here")
    assert told(found["other"])[1] == ""

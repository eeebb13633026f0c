from __future__ import annotations

import statistics

import pytest

from autopeft.search.jobs import TrialRecord
from autopeft.search.selection import choose_finalists, mean_sd


def test_mean_and_sample_deviation() -> None:
    values = [0.8, 0.82, 0.79]
    mean, sd = mean_sd(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert sd == pytest.approx(statistics.stdev(values))
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([]) == (None, None)


def test_finalists_are_different_recipes() -> None:
    records = [TrialRecord("trial", "t", "complete", {}, number=i, hash=h) for i, h in enumerate("aabc")]
    assert [r.number for r in choose_finalists(records, 2)] == [0, 2]

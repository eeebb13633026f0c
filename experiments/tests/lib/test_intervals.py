"""Means with their intervals."""

from __future__ import annotations

import math

import pytest
from lib.intervals import interval


def test_an_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)

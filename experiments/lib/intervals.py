"""Means with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

__all__ = ["interval", "mean_of"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t); infinite for a single value."""
    n = len(values)
    if n < 2:
        return values[0], math.inf
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return statistics.fmean(values), half


def mean_of(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval, with two digits."""
    mean, half = interval(values)
    return f"{mean:.2f} ± {half:.2f}"

"""Means with 95 % intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

__all__ = ["interval", "mean_of", "one_sided", "stratified"]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval (Student's t); infinite for a single value."""
    n = len(values)
    if n < 2:
        return values[0], math.inf
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return statistics.fmean(values), half


def one_sided(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and how far below or above it the end of its one-sided 95 % interval lies (Student's t); infinite
    for a single value."""
    n = len(values)
    if n < 2:
        return values[0], math.inf
    return statistics.fmean(values), float(t.ppf(0.95, n - 1)) * statistics.stdev(values) / math.sqrt(n)


def mean_of(values: Sequence[float]) -> str:
    """Mean and half of its 95 % interval, with two digits."""
    mean, half = interval(values)
    return f"{mean:.2f} ± {half:.2f}"


def stratified(
    groups: Sequence[Sequence[float]],
    weights: Sequence[float] | None = None,
    level: float = 0.95,
    *,
    pooled: bool = False,
) -> tuple[float, float]:
    """Weighted mean of the means of groups, and half of its interval, for these very groups: what varies is
    what is inside them.

    The variance is Σ w² s²/n, with Satterthwaite's degrees of freedom. Infinite where a group has one value.

    Args:
        groups: values of each group, at least one.
        weights: of the groups, all alike by default; they need not sum to 1.
        pooled: whether all groups have one variance, with all their degrees of freedom. Infinite where no
            group has a second value.
    """
    given = [1.0] * len(groups) if weights is None else list(weights)
    shares = [weight / math.fsum(given) for weight in given]
    mean = math.fsum(share * statistics.fmean(own) for share, own in zip(shares, groups, strict=True))
    degrees = [len(own) - 1 for own in groups]
    if sum(degrees) == 0 if pooled else min(degrees) == 0:
        return mean, math.inf
    if pooled:
        squares = math.fsum(d * statistics.variance(own) for d, own in zip(degrees, groups, strict=True) if d)
        weight = math.fsum(share**2 / len(own) for share, own in zip(shares, groups, strict=True))
        error = math.sqrt(squares / sum(degrees) * weight)
        return mean, float(t.ppf((1 + level) / 2, sum(degrees))) * error
    parts = [
        (share**2 * statistics.variance(own) / len(own), len(own) - 1)
        for share, own in zip(shares, groups, strict=True)
    ]
    variance = math.fsum(part for part, _ in parts)
    if variance == 0:
        return mean, 0.0
    freedom = 1 / math.fsum((part / variance) ** 2 / own for part, own in parts)
    return mean, float(t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)

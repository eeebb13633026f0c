"""Metrics of real numbers; scipy does the arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk

__all__ = ["PEARSON", "PEARSON_SPEARMAN", "SPEARMAN"]

Numbers = NDArray[Any]


def _pearson(predictions: Numbers, labels: Numbers) -> float:
    return _correlation(stats.pearsonr, predictions, labels)


def _spearman(predictions: Numbers, labels: Numbers) -> float:
    return _correlation(stats.spearmanr, predictions, labels)


def _correlation(function: Callable[..., object], predictions: Numbers, labels: Numbers) -> float:
    """A correlation; 0.0 where one side is constant, for which it is not defined."""
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    exact = predictions.astype(np.float64), labels.astype(np.float64)
    with warnings.catch_warnings():
        # Nearly constant input: the value is finite or caught below.
        warnings.simplefilter("ignore")
        value = float(function(*exact)[0])  # type: ignore[index]
    return value if np.isfinite(value) else 0.0


def _variance(score: float, rows: ScoredRows) -> float:
    """Of Spearman's correlation (Bonett and Wright 2000), a little more than Pearson's for normal data."""
    r = 2 * shrunk((1 + score) / 2, rows.rows) - 1
    return (1 - r**2) ** 2 * (1 + r**2 / 2) / max(rows.rows - 3, 1)


PEARSON = Metric("pearson", -1, 1, "linear correlation; 0 for constant predictions", _pearson, _variance)
SPEARMAN = Metric("spearman", -1, 1, "rank correlation; 0 for constant predictions", _spearman, _variance)
PEARSON_SPEARMAN = Metric(
    "pearson_spearman",
    -1,
    1,
    "mean of the two correlations (STS-B)",
    lambda p, y: (_pearson(p, y) + _spearman(p, y)) / 2,
    _variance,
)

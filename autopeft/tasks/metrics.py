"""Scores of predictions, higher is better for all of them; scikit-learn and scipy do the arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from autopeft.errors import AutoPEFTError, TaskError, near

__all__ = ["METRICS", "Metric", "check_metric", "compute"]

Numbers = NDArray[np.generic]


@dataclass(frozen=True)
class Metric:
    """A score: its name, the kind of task it is for, its range, what it says, and the function."""

    name: str
    kind: str
    low: float
    high: float
    summary: str
    score: Callable[[Numbers, Numbers], float]


def _pearson(predictions: Numbers, labels: Numbers) -> float:
    return _correlation(stats.pearsonr, predictions, labels)


def _spearman(predictions: Numbers, labels: Numbers) -> float:
    return _correlation(stats.spearmanr, predictions, labels)


def _matthews(predictions: Numbers, labels: Numbers) -> float:
    if len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return float(sk.matthews_corrcoef(labels, predictions))


def _correlation(function: Callable[..., object], predictions: Numbers, labels: Numbers) -> float:
    """A correlation; 0.0 where one side is constant, for which it is not defined."""
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    with warnings.catch_warnings():
        # Nearly constant input: the value is finite or caught below.
        warnings.simplefilter("ignore")
        value = float(function(predictions, labels)[0])  # type: ignore[index]
    return value if np.isfinite(value) else 0.0


def _listed() -> tuple[Metric, ...]:
    return (
        Metric("accuracy", "classification", 0, 1, "share of rows that are right", lambda p, y:
        sk.accuracy_score(y, p)), Metric(
            "f1", "classification", 0, 1, "F1 of the second of two classes",
            lambda p, y: sk.f1_score(y, p, zero_division=0.0),
        ),
        Metric(
            "macro_f1", "classification", 0, 1, "mean F1 of the classes, each counted the same",
            lambda p, y: sk.f1_score(y, p, average="macro", zero_division=0.0),
        ),
        Metric(
            "matthews", "classification", -1, 1, "Matthews correlation; 0 for constant predictions",
            _matthews,
        ),
        Metric("pearson", "regression", -1, 1, "linear correlation; 0 for constant predictions", _pearson),
        Metric("spearman", "regression", -1, 1, "rank correlation; 0 for constant predictions", _spearman),
        Metric(
            "pearson_spearman", "regression", -1, 1, "mean of the two correlations (STS-B)",
            lambda p, y: (_pearson(p, y) + _spearman(p, y)) / 2,
        ),
    )  # fmt: skip


METRICS: dict[str, Metric] = {metric.name: metric for metric in _listed()}


def check_metric(metric: str, kind: str, num_labels: int) -> None:
    """Raise unless `metric` can score such a task.

    Raises:
        TaskError: it is unknown, for the other kind of task, or F1 with more than two classes.
    """
    if metric not in METRICS:
        raise TaskError(f"Unknown {metric=}; there are {', '.join(METRICS)}.{near(metric, METRICS)}")
    if METRICS[metric].kind != kind:
        fitting = ", ".join(name for name, known in METRICS.items() if known.kind == kind)
        raise TaskError(
            f"{metric=} is for {METRICS[metric].kind}, but the task is {kind}; choose from {fitting}."
        )
    if metric == "f1" and num_labels != 2:
        raise TaskError(f"metric='f1' needs two classes, but the task has {num_labels}; use macro_f1.")


def compute(metric: str, predictions: Numbers, labels: Numbers) -> float:
    """Score predictions.

    Args:
        metric: a name of `METRICS`, which also holds the ranges.
        predictions: class indices or real values, shape (N,) or (N, 1); or class scores (N, C), whose
            largest counts.
        labels: class indices or real values, shape (N,).

    Raises:
        TaskError: the metric is unknown, or the shapes do not fit.
        AutoPEFTError: a prediction is not finite.
    """
    if metric not in METRICS:
        raise TaskError(f"Unknown {metric=}; there are {', '.join(METRICS)}.{near(metric, METRICS)}")
    known = METRICS[metric]
    found = np.asarray(predictions)
    if not np.all(np.isfinite(found)):
        raise AutoPEFTError("The predictions hold values that are not finite; they cannot be scored.")
    if found.ndim == 2:
        found = found[:, 0] if found.shape[1] == 1 else found.argmax(axis=1)
    truth = np.asarray(labels)
    if found.shape != truth.shape or truth.ndim != 1 or len(truth) == 0:
        raise TaskError(
            f"Cannot score predictions of shape {found.shape} against labels of shape {truth.shape}."
        )
    if known.kind == "regression":
        found, truth = found.astype(np.float64), truth.astype(np.float64)
    return float(known.score(found, truth))

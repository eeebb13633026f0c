"""Scores of predictions, higher is better for all of them; the metrics belong to the kinds of tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from autopeft.errors import TaskError
from autopeft.tasks.kinds import METRICS, Metric, get_kind, get_metric, kinds_of, metrics_of
from autopeft.tasks.split import Split

__all__ = ["METRICS", "Metric", "check_metric", "compute"]


def check_metric(metric: str, kind: str, names: Sequence[str], rows: Split | None = None) -> None:
    """Raise unless `metric` can score a task of this kind with these classes and rows.

    Raises:
        TaskError: it is unknown, for other kinds of task, or does not fit the classes.
    """
    known = get_metric(metric)
    if not known.own and metric not in metrics_of(kind):
        scored = " and ".join(kinds_of(metric)) or "sets of tasks"
        raise TaskError(
            f"{metric=} is for {scored}, but the task is {kind}; choose from {', '.join(metrics_of(kind))}."
        )
    get_kind(kind).scorer.check_metric(known, names, rows)


def compute(metric: str, predictions: NDArray[Any], labels: NDArray[Any], kind: str | None = None) -> float:
    """Score predictions.

    Args:
        metric: a name of `METRICS`, which also holds the ranges.
        predictions: a model's outputs, shape (N, …), or the decisions taken from them: class indices or real
            values, shape (N,) or (N, 1); class scores (N, C), whose largest counts.
        labels: as the kind of task has them: class indices or real values, shape (N,).
        kind: of task; default: the first that the metric scores.

    Raises:
        TaskError: the metric is unknown, or the shapes do not fit.
        AutoPEFTError: a prediction is not finite.
    """
    known = get_metric(metric)
    kinds = kinds_of(metric) if kind is None else (kind,)
    if not kinds:
        raise TaskError(f"{metric=} is for sets of tasks: give the kind of the set (kind=task.kind).")
    return get_kind(kinds[0]).scorer.score(known, predictions, labels)

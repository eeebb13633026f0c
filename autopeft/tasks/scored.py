"""The rows that a score was measured on, and how uncertain it is through them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from autopeft.tasks.kinds import get_metric
from autopeft.tasks.split import SplitName
from autopeft.tasks.task import Task

__all__ = ["ScoredSplit"]


@dataclass(frozen=True)
class ScoredSplit:
    """The rows that a score was measured on.

    Attributes:
        metric: a name of `autopeft.tasks.METRICS`.
        rows: number of rows.
        classes: number of rows of each class, in index order; empty for kinds without classes.
        labels: the labels as the metric takes them, where they are at hand.
    """

    metric: str
    rows: int
    classes: tuple[int, ...] = ()
    labels: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, task: Task, name: SplitName = "test", metric: str | None = None) -> ScoredSplit:
        """A split of a task, scored by its own metric or by another one."""
        labels, kind = task.splits[name].labels, task.task_kind
        counts = kind.class_counts(labels, task.labels)
        return cls(metric or task.metric, len(labels), counts, kind.label_array(labels))

    def variance(self, score: float) -> float:
        """Sampling variance of a score: how much it would vary over other rows, the model unchanged."""
        return get_metric(self.metric).sampling_variance(score, self)

    @property
    def span(self) -> float:
        """How far the lowest and the highest score are apart; infinite where the metric has no range."""
        metric = get_metric(self.metric)
        return metric.high - metric.low

    @property
    def least_variance(self) -> float:
        """Sampling variance of a perfect score, in which one row that errs has its part: accuracy's is near
        1/rows². Infinite where the metric has no highest score."""
        highest = get_metric(self.metric).high
        return self.variance(highest) if math.isfinite(highest) else math.inf

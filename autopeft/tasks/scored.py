"""The rows that a score was measured on, and how uncertain it is through them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds import get_metric
from autopeft.tasks.split import SplitName
from autopeft.tasks.task import Task

__all__ = ["ScoredSplit"]


@dataclass(frozen=True)
class ScoredSplit:
    """The rows that a score was measured on.

    Copies of a text (see `autopeft.tasks.copies`) are answered alike, so that further ones say nothing of
    other texts: variances are those over texts.

    Attributes:
        metric: a name of `autopeft.tasks.METRICS`.
        rows: number of rows.
        classes: number of texts of each class, in index order, a text having the label of its first row;
            empty for kinds without classes.
        labels: the labels of the texts as the metric takes them, where they are at hand.
        sizes: rows of each text, in the order in which they come first; empty where no row is a copy.
    """

    metric: str
    rows: int
    classes: tuple[int, ...] = ()
    labels: NDArray[Any] | None = field(default=None, compare=False, repr=False)
    sizes: tuple[int, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, task: Task, name: SplitName = "test", metric: str | None = None) -> ScoredSplit:
        """A split of a task, scored by its own metric or by another one."""
        labels: Sequence[Any] = task.splits[name].labels
        kind, rows, sizes = task.task_kind, len(labels), ()
        _, first, counts = np.unique(task.text_ids(name), return_index=True, return_counts=True)
        if len(first) < rows:
            labels, sizes = [labels[i] for i in first], tuple(counts.tolist())
        classes = kind.schema.class_counts(labels, task.labels)
        return cls(metric or task.metric, rows, classes, kind.encoder.label_array(labels), sizes)

    @property
    def texts(self) -> int:
        """How many different texts there are."""
        return len(self.sizes) or self.rows

    def variance(self, score: float) -> float:
        """Sampling variance of a score: how much it would vary over other texts, the model unchanged.

        That of texts that are there once each, times Kish's design effect of their unequal sizes:
        texts · Σ sizes² / rows², which is 1 where each has as many copies.
        """
        once = replace(self, rows=self.texts, sizes=())
        uneven = self.texts * sum(size**2 for size in self.sizes) / self.rows**2 if self.sizes else 1.0
        return uneven * get_metric(self.metric).sampling_variance(score, once)

    @property
    def span(self) -> float:
        """How far the lowest and the highest score are apart; infinite where the metric has no range."""
        metric = get_metric(self.metric)
        return metric.high - metric.low

    @property
    def least_variance(self) -> float:
        """Sampling variance of a perfect score, in which one text that errs has its part: accuracy's is near
        1/rows² without copies. Infinite where the metric has no highest score."""
        highest = get_metric(self.metric).high
        return self.variance(highest) if math.isfinite(highest) else math.inf

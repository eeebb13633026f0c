"""A metric: how predictions are scored, and how much such a score would vary over other rows.

A search ends with comparisons of scores that were measured on a finite number of rows, so a metric has to
say its sampling variance. Metrics with a formula give it as `variance`; for all others `sampling_variance`
finds it by simulation, or falls back to the largest one that the range allows. It never raises: a new metric
cannot fail after all training was done.
"""

from __future__ import annotations

import heapq
import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import TaskError, UsageError, near

__all__ = [
    "Metric",
    "ScoredRows",
    "f1_of_counts",
    "f1_variance",
    "function_of",
    "groups_of",
    "jackknife_variance",
    "mean_metric",
    "mean_variance",
    "metric_name",
    "own_metric",
    "pseudo_values",
    "share_variance",
    "shrunk",
]

_GROUPS = 100
_SIMULATED_ROWS = 500
_log = logging.getLogger("autopeft")
Numbers = NDArray[Any]


class ScoredRows(Protocol):
    """The rows that a score was measured on, each text once.

    Attributes:
        rows: number of rows.
        classes: number of rows of each class, in index order; empty where the kind has no classes.
        labels: the labels as the metric takes them, shape (rows, …); `None` where they are not at hand.
    """

    @property
    def rows(self) -> int: ...

    @property
    def classes(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> Numbers | None: ...


@dataclass(frozen=True)
class Metric:
    """A score, higher is better.

    Attributes:
        name: what `--metric` takes; one name means one metric in all kinds.
        low, high: the range. A metric without `variance` needs a finite one.
        summary: what it says, one line.
        score: of predictions and labels, both of shape (rows, …), as the kind's `decisions` and
            `label_array` give them. It gives a number for any predictions, constant ones included.
        variance: sampling variance of a score: how much it would vary over other rows, the model unchanged.
            Must be finite and not negative for every score in the range and any number of rows. `None`: see
            `sampling_variance`.
        raw: whether `score` takes the kind's outputs (class scores, …) in place of its decisions.
        by_row: the score of each row, (rows,), where `score` is their mean; what rows contribute to a score
            is then known without scoring them again and again.
        of_sums: where `by_row` gives what is counted of each row, (rows, counts), instead: the score, of the
            sums over the rows (counts,).
        generated: whether predictions are texts that the model has to write first (see `Scorer.generate`).
        own: whether it is a function of the user's, which no registry holds (see `own_metric`).
    """

    name: str
    low: float
    high: float
    summary: str
    score: Callable[[Numbers, Numbers], float]
    variance: Callable[[float, ScoredRows], float] | None = None
    raw: bool = False
    by_row: Callable[[Numbers, Numbers], Numbers] | None = None
    generated: bool = False
    own: bool = False
    of_sums: Callable[[Numbers], float] | None = None

    @property
    def built_in(self) -> bool:
        """Whether it comes with this package; the code of others may change unseen."""
        return not self.own and self.score.__module__.startswith("autopeft.")

    def sampling_variance(self, score: float, rows: ScoredRows) -> float:
        """The variance of a score over other rows; finite wherever the range is.

        By the metric's own formula. Without one, predictions are simulated that are right on some rows and
        another row's label on the rest, so many that they have this score; of these, the jackknife over
        groups of rows. Where that is not possible (no labels at hand, `raw`), the largest variance that a
        mean over rows in this range can have, (high - s)(s - low)/n.
        """
        found: float | None = None
        try:
            if self.variance is not None:
                found = float(self.variance(score, rows))
            elif not self.raw and rows.labels is not None and len(rows.labels) > 1:
                found = _simulated(self.score, score, rows.labels)
        # Code of any package, at the end of a search whose training must not be lost.
        except Exception:
            _log.warning("the sampling variance of %s cannot be computed", self.name, exc_info=True)
        if found is not None and math.isfinite(found) and found >= 0:
            return found
        # Bhatia and Davis's inequality (2000), a perfect score counted as nearly perfect.
        width = self.high - self.low
        if not math.isfinite(width):
            return math.inf
        share = shrunk((score - self.low) / width, rows.rows)
        return width**2 * share * (1 - share) / max(rows.rows, 1)


def shrunk(share: float, rows: int) -> float:
    """One success and one failure more (Agresti and Caffo 2000): a perfect score is not a certain one."""
    return (rows * min(max(share, 0.0), 1.0) + 1) / (rows + 2)


def share_variance(share: float, count: int) -> float:
    """Sampling variance of a share of so many that are independent of one another; of a mean of values from 0
    to 1 the largest that it can be."""
    p = shrunk(share, count)
    return p * (1 - p) / max(count, 1)


def mean_variance(score: float, rows: ScoredRows) -> float:
    """Sampling variance of a mean of values from 0 to 1 over rows (see `share_variance`)."""
    return share_variance(score, rows.rows)


def f1_variance(score: float, positives: int) -> float:
    """Sampling variance of an F1 of so many that are there. F1 = 2J / (1 + J), where J is the share of hits
    among the rows that are positive or called so; by the delta method F(1 − F)(2 − F)² / 2m. These rows m are
    at least the positive ones."""
    f = shrunk(score, positives)
    return f * (1 - f) * (2 - f) ** 2 / (2 * max(positives, 1))


def f1_of_counts(counts: Numbers) -> float:
    """F1 of the numbers of those that are right, that were predicted and that there are, (3,); 0 where there
    are none."""
    right, said, there = counts
    return float(2 * right / (said + there)) if said + there else 0.0


def mean_metric(
    name: str, summary: str, by_row: Callable[[Numbers, Numbers], Numbers], *, generated: bool = False
) -> Metric:
    """A metric that is the mean of a value from 0 to 1 for each row.

    Args:
        by_row: of predictions and labels the values, (rows,).
    """
    return Metric(
        name, 0, 1, summary, lambda found, wanted: float(by_row(found, wanted).mean()),
        mean_variance, by_row=by_row, generated=generated,
    )  # fmt: skip


def pseudo_values(
    score: Callable[[Numbers, Numbers], float],
    predictions: Numbers,
    labels: Numbers,
    text_ids: Numbers | None = None,
) -> Numbers:
    """What each group of rows contributes to a score, (groups,): their mean is the score, but for a term of
    order 1/groups, and their variance over the number of groups that of the score over other texts.

    Groups depend on the number of rows alone, and on which of them are copies, so that those of two models on
    the same rows can be subtracted. A group of many rows needs no weight: without it the score is moved more.

    Args:
        score: of predictions and labels.
        predictions, labels: shape (rows, …), of at least two different texts.
        text_ids: which of the different texts each row has, (rows,); see `autopeft.tasks.copies`. `None`
            where all differ. All rows of a text are in one group (see `groups_of`).

    Source: the jackknife that leaves out one group after the other (Tukey 1958; Efron and Stein 1981,
    doi:10.1214/aos/1176345462), of clusters of rows where some are copies (MacKinnon, Nielsen and Webb,
    arXiv:2301.04527).
    """
    sizes = np.ones(len(labels), dtype=np.int64) if text_ids is None else np.bincount(text_ids)
    groups = groups_of(sizes)
    count = int(groups.max()) + 1
    if text_ids is not None:
        groups = groups[text_ids]
    left = np.array([float(score(predictions[groups != g], labels[groups != g])) for g in range(count)])
    return count * float(score(predictions, labels)) - (count - 1) * left


def groups_of(sizes: Sequence[int] | Numbers) -> Numbers:
    """The group of each text, (texts,), of 100 at most, which are as equally large as their texts allow.

    Args:
        sizes: rows of each text, (texts,).
    """
    count = min(_GROUPS, len(sizes))
    groups = np.empty(len(sizes), dtype=np.int64)
    # Rows of a data file may come in order: which group a row is in must not follow from its label.
    order = np.argsort(np.random.default_rng(0).permutation(len(sizes)))
    loads = [(0, group) for group in range(count)]
    for text in order[np.argsort(-np.asarray(sizes)[order], kind="stable")]:  # the longest first (LPT)
        rows, group = heapq.heappop(loads)
        groups[text] = group
        heapq.heappush(loads, (rows + int(sizes[text]), group))
    return groups


def jackknife_variance(
    score: Callable[[Numbers, Numbers], float], predictions: Numbers, labels: Numbers
) -> float:
    """Variance of a score over rows, by the jackknife (see `pseudo_values`)."""
    values = pseudo_values(score, predictions, labels)
    return float(np.var(values, ddof=1)) / len(values)


def _simulated(score: Callable[[Numbers, Numbers], float], target: float, labels: Numbers) -> float | None:
    """Jackknife variance of predictions that have about the score `target`; `None` where it is no number."""
    rng = np.random.default_rng(0)
    rows = rng.permutation(len(labels))[:_SIMULATED_ROWS]
    truth = labels[rows]
    donors = rng.permutation(truth)
    ranks = rng.permutation(len(truth))

    def predictions(wrong: int) -> Numbers:
        mixed: Numbers = truth.copy()
        mixed[ranks < wrong] = donors[ranks < wrong]
        return mixed

    # Scores fall with the number of replaced rows. At least one is: a perfect score is not a certain one.
    low, high = 1, len(truth)
    while low < high:
        middle = (low + high) // 2
        if float(score(predictions(middle), truth)) > target:
            low = middle + 1
        else:
            high = middle
    found = jackknife_variance(score, predictions(low), truth)
    # Too few rows to show a difference say nothing of the variance.
    return found * len(truth) / len(labels) if found > 0 else None


# Functions of the user's own, named on the command line or handed over in Python
# ------------------------------------------------------------------------------------------------------


Function = Callable[[list[Any], list[Any]], float]


def metric_name(metric: Any) -> str | None:
    """The name of a metric: its own, or of a function `module:function`."""
    if metric is None or isinstance(metric, str):
        return metric
    name = getattr(metric, "__qualname__", type(metric).__qualname__)
    return f"{getattr(metric, '__module__', '__main__')}:{name}"


def function_of(text: str) -> str | Function:
    """What `--metric` names on the command line: a metric, or with a colon a function `module:function`. Its
    module is imported, from the working folder too.

    Raises:
        UsageError: there is no such module or function.
    """
    module, colon, name = text.partition(":")
    if not colon:
        return text
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's own module fails in whatever way it likes
        raise UsageError(f"--metric {text}: {module!r} cannot be imported: {error}.") from error
    function = getattr(found, name, None)
    if not callable(function):
        known = [n for n, value in vars(found).items() if callable(value)]
        raise UsageError(f"--metric {text}: {module!r} has no function {name!r}.{near(name, known)}")
    return function  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _OwnScore:
    """Calls a user's function with lists, and takes only a number from it."""

    function: Function
    name: str

    def __call__(self, predictions: NDArray[Any], labels: NDArray[Any]) -> float:
        try:
            found = self.function(np.asarray(predictions).tolist(), np.asarray(labels).tolist())
            return float(found)
        except Exception as error:  # it is the user's own
            raise TaskError(
                f"The metric {self.name} failed on {len(labels)} predictions: {type(error).__name__}: {error}"
            ) from error


def own_metric(function: Function, *, generated: bool) -> Metric:
    """A function of predictions and references, higher is better, as a metric.

    Args:
        function: takes two lists of the same length; of language models texts, of other kinds what metrics
            compare (class indices, numbers). Its range is not known.
        generated: whether predictions are texts that the model writes.
    """
    name = metric_name(function) or ""
    summary = (getattr(function, "__doc__", None) or "a function of the user's").strip().split("\n")[0]
    return Metric(
        name, -math.inf, math.inf, summary, _OwnScore(function, name), generated=generated, own=True
    )

"""Regression: one real number for each text or pair of texts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric, ScoredRows, shrunk
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.kinds.scorer import Breakdown, Loss, Scorer
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.table import ColumnNames, RawRows, Table, number_of, numbers_of, peek_labels

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = [
    "PEARSON",
    "PEARSON_SPEARMAN",
    "REGRESSION_VALUES",
    "SPEARMAN",
    "NumberHead",
    "NumberSchema",
    "NumberScorer",
    "SquaredError",
]

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


REGRESSION_VALUES = 10
_CLAIM = 0.5
_BINS = 10
_LARGEST = 1e15  # the squares of 10**8 such errors add up in single precision


class NumberSchema(Schema):
    """Labels are real numbers."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims labels that are all numbers, not all whole, and take more than 10 different values."""
        numbers = [number_of(value) for value in peek_labels(tables, named)]
        found = {number for number in numbers if number is not None and np.isfinite(number)}
        if len(found) <= REGRESSION_VALUES or None in numbers:
            return 0.0
        return _CLAIM if any(number != int(number) for number in found) else 0.0

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """Any numbers will do.

        Raises:
            DataError: labels are not all finite numbers, too large for single precision, or all the same in
                it.
        """
        numbers = numbers_of(parts)
        if numbers is None:
            raise DataError(
                f"Regression needs numbers as labels, but those of {parts[0].where} are not all numbers."
            )
        flat = [number for part in numbers for number in part]
        largest = max(flat, key=abs)
        if abs(largest) > _LARGEST:
            raise DataError(
                f"{parts[0].where}: a label is {largest:.4g}, and numbers are learned up to {_LARGEST:.0e}, "
                "whose squares still add up; divide the labels by a power of ten."
            )
        if len(set(np.asarray(flat, dtype=np.float32).tolist())) < 2:
            raise DataError(f"{parts[0].where}: all labels are {flat[0]}; there is nothing to learn.")
        return (), [list(part) for part in numbers]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """Tenths of the labels' ranks."""
        ranks = np.argsort(np.argsort(np.asarray(labels, dtype=np.float64), kind="stable"), kind="stable")
        return [int(rank) for rank in ranks * _BINS // max(len(labels), 1)]

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Least, largest and mean number."""
        return f"{min(labels):.4g} to {max(labels):.4g}, mean {np.mean(labels):.4g}" if len(labels) else ""

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `Schema.remarks`; splits whose labels are all equal, on which no correlation is defined."""
        found = super().remarks(splits, names, metric, weighted=weighted)
        equal = [name for name, split in splits.items() if len(split) > 1 and len(set(split.labels)) == 1]
        return [*found, *(f"All labels of {n} are equal: a score on it is 0 for any model." for n in equal)]


class NumberHead(Head):
    """One output."""

    problem = "regression"
    outputs = 1


class SquaredError(Loss):
    """Squared error, divided by the rows."""

    in_units = True

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of predictions (rows, 1) and labels (rows,)."""
        return F.mse_loss(logits.float().squeeze(-1), batch["labels"].float(), reduction="sum")


class NumberScorer(Scorer):
    """Outputs are (rows, 1), decisions the column."""

    metrics = (PEARSON, SPEARMAN, PEARSON_SPEARMAN)

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The mean, which has the least squared error."""
        mean = float(np.mean(labels))
        return f"always the mean, {mean:.4g}", mean

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return SquaredError()

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Mean absolute error, root of the mean squared error and the largest error, in the labels' unit."""
        errors = np.abs(np.asarray(self.decisions(outputs), dtype=np.float64) - labels)
        found = (float(errors.mean()), float(np.sqrt(np.mean(errors**2))), float(errors.max()))
        headers = ("error", "mean absolute", "root mean square", "largest")
        return (Breakdown("errors", "Errors in the unit of the labels", headers, (("all rows", *found),)),)

    def describe_labels(self, names: Sequence[str]) -> str:
        return "a real number"


register_kind(
    TaskKind(
        "regression",
        "a real number",
        schema=NumberSchema(),
        encoder=Encoder(np.float32),
        head=NumberHead(),
        scorer=NumberScorer(),
    )
)

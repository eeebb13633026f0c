"""Regression: one real number for each text or pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.tasks.kinds.breakdown import Breakdown
from autopeft.tasks.kinds.contract import TaskKind
from autopeft.tasks.kinds.correlations import PEARSON, PEARSON_SPEARMAN, SPEARMAN
from autopeft.tasks.kinds.loss import Loss
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.table import ColumnNames, RawRows, Table, number_of, numbers_of, peek_labels

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["REGRESSION_VALUES", "Regression", "SquaredError"]

REGRESSION_VALUES = 10
_CLAIM = 0.5
_BINS = 10
_LARGEST = 1e15  # the squares of 10**8 such errors add up in single precision


class SquaredError(Loss):
    """Squared error, divided by the rows."""

    in_units = True

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of predictions (rows, 1) and labels (rows,)."""
        return F.mse_loss(logits.float().squeeze(-1), labels.float(), reduction="sum")

    def weight(self, labels: Tensor) -> float:
        return float(labels.shape[0])


@register_kind("regression")
class Regression(TaskKind):
    """Labels are real numbers; outputs are (rows, 1), decisions the column."""

    summary = "a real number"
    metrics = (PEARSON, SPEARMAN, PEARSON_SPEARMAN)
    default_metric = PEARSON.name

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
        if len(set(self.label_array(flat).tolist())) < 2:
            raise DataError(f"{parts[0].where}: all labels are {flat[0]}; there is nothing to learn.")
        return (), [list(part) for part in numbers]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """Tenths of the labels' ranks."""
        ranks = np.argsort(np.argsort(np.asarray(labels, dtype=np.float64), kind="stable"), kind="stable")
        return [int(rank) for rank in ranks * _BINS // max(len(labels), 1)]

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Least, largest and mean number."""
        return f"{min(labels):.4g} to {max(labels):.4g}, mean {np.mean(labels):.4g}" if len(labels) else ""

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The mean, which has the least squared error."""
        mean = float(np.mean(labels))
        return f"always the mean, {mean:.4g}", mean

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `TaskKind`; splits whose labels are all equal, on which no correlation is defined."""
        found = super().remarks(splits, names, metric, weighted=weighted)
        equal = [name for name, split in splits.items() if len(split) > 1 and len(set(split.labels)) == 1]
        return [*found, *(f"All labels of {n} are equal: a score on it is 0 for any model." for n in equal)]

    def num_labels(self, names: Sequence[str]) -> int:
        return 1

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """Numbers (rows,) in float32."""
        return np.asarray(labels, dtype=np.float32)

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return SquaredError()

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The predicted numbers, (rows,)."""
        return outputs[:, 0] if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Mean absolute error, root of the mean squared error and the largest error, in the labels' unit."""
        errors = np.abs(np.asarray(self.decisions(outputs), dtype=np.float64) - labels)
        found = (float(errors.mean()), float(np.sqrt(np.mean(errors**2))), float(errors.max()))
        headers = ("error", "mean absolute", "root mean square", "largest")
        return (Breakdown("errors", "Errors in the unit of the labels", headers, (("all rows", *found),)),)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `value`."""
        return {"value": float(output[0])}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['value']:.4f}"

    def describe_labels(self, names: Sequence[str]) -> str:
        return "a real number"

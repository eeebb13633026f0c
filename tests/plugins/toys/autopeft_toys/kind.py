"""A kind of task: a share between 0 and 1 for each text, by its cross-entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.tasks.kinds import Loss, Metric, register_kind
from autopeft.tasks.kinds.regression import Regression
from autopeft.tasks.table import ColumnNames, RawRows, Table, number_of, peek_labels


def _closeness(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(1 - np.abs(predictions - labels).mean())


CLOSENESS = Metric("toy_closeness", 0, 1, "1 - mean absolute error", _closeness)


class CrossEntropy(Loss):
    """Of each share, divided by the rows."""

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (rows, 1) and labels (rows,)."""
        return F.binary_cross_entropy_with_logits(logits.float().squeeze(-1), labels.float(), reduction="sum")

    def weight(self, labels: Tensor) -> float:
        return float(labels.shape[0])


@register_kind("toy")
class Share(Regression):
    """Labels are numbers from 0 to 1; outputs are logits (rows, 1)."""

    summary = "a share between 0 and 1"
    metrics = (CLOSENESS,)
    default_metric = "toy_closeness"

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        numbers = [number_of(value) for value in peek_labels(tables, named)]
        inside = bool(numbers) and all(n is not None and 0 <= n <= 1 for n in numbers)
        return 0.6 if inside and super().claim(tables, named) else 0.0

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        names, labels = super().encode_labels(parts, order)
        if any(not 0 <= label <= 1 for part in labels for label in part):
            raise DataError(f"{parts[0].where}: a share lies between 0 and 1.")
        return names, labels

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return CrossEntropy()

    def average(self) -> Callable[[Tensor, int], Tensor]:
        return lambda logits, dim: torch.logit(logits.sigmoid().mean(dim))

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if outputs.ndim == 1:
            return outputs
        return super().decisions(1 / (1 + np.exp(-outputs.astype(np.float64))))

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        return {"share": float(self.decisions(output[None])[0])}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['share']:.0%}"

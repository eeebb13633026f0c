"""A kind of task: a share between 0 and 1 for each text, by its cross-entropy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.tasks.kinds import Encoder, Loss, Metric, TaskKind, register_kind
from autopeft.tasks.kinds.regression import NumberHead, NumberSchema, NumberScorer
from autopeft.tasks.table import number_of, peek_labels


def _closeness(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(1 - np.abs(predictions - labels).mean())


class ShareSchema(NumberSchema):
    def claim(self, tables: Any, named: Any) -> float:
        numbers = [number_of(value) for value in peek_labels(tables, named)]
        inside = bool(numbers) and all(n is not None and 0 <= n <= 1 for n in numbers)
        return 0.6 if inside and super().claim(tables, named) else 0.0

    def encode_labels(self, parts: Any, order: Any = ()) -> tuple[tuple[str, ...], list[list[Any]]]:
        names, labels = super().encode_labels(parts, order)
        if any(not 0 <= label <= 1 for part in labels for label in part):
            raise DataError(f"{parts[0].where}: a share lies between 0 and 1.")
        return names, labels


class CrossEntropy(Loss):
    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float()[:, 0], batch["labels"], reduction="sum")


class ShareScorer(NumberScorer):
    metrics = (Metric("toy_closeness", 0, 1, "1 - mean absolute error", _closeness),)

    def loss(self, names: Any, class_weights: Any = None) -> Loss:
        return CrossEntropy()

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor]:
        return lambda logits, dim: torch.logit(logits.sigmoid().mean(dim))

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs if outputs.ndim == 1 else 1 / (1 + np.exp(-outputs[:, 0].astype(np.float64)))

    def present(self, output: NDArray[Any], names: Any) -> dict[str, Any]:
        return {"share": float(self.decisions(output[None])[0])}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['share']:.0%}"


PARTS: dict[str, Any] = {"schema": ShareSchema(), "head": NumberHead(), "scorer": ShareScorer()}
register_kind(TaskKind("toy", "a share between 0 and 1", encoder=Encoder(np.float32), **PARTS))

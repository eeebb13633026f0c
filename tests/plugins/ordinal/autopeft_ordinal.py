"""Ordinal regression as a kind of task in a package of its own: classes with an order ("3 stars").

A class is a number of passed thresholds; there is one output for each threshold (Li and Lin 2006, "Ordinal
regression by extended binary classification").
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError
from autopeft.tasks.kinds import (
    Breakdown,
    Head,
    Loss,
    Metric,
    Schema,
    ScoredRows,
    Scorer,
    TaskKind,
    class_breakdowns,
    register_kind,
    shrunk,
)
from autopeft.tasks.table import ColumnNames, RawRows, Table, peek_labels

_STARS = re.compile(r"(\d+) stars?")


def _within_one(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    return float(np.mean(np.abs(predictions - labels) <= 1))


def _share_variance(score: float, rows: ScoredRows) -> float:
    share = shrunk(score, rows.rows)
    return share * (1 - share) / max(rows.rows, 1)


def _kappa(predictions: NDArray[Any], labels: NDArray[Any]) -> float:
    if len(np.unique(np.concatenate([predictions, labels]))) < 2:
        return 0.0
    return float(cohen_kappa_score(labels, predictions, weights="quadratic"))


KAPPA = Metric("kappa", -1, 1, "quadratically weighted kappa", _kappa)
WITHIN_ONE = Metric("within_one", 0, 1, "share at most one class off", _within_one, _share_variance)


class StarSchema(Schema):
    """Labels are class indices in order."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        labels = peek_labels(tables, named)
        return 0.9 if labels and all(_STARS.fullmatch(str(label)) for label in labels) else 0.0

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        present = {str(label) for part in parts for label in part.labels}
        if bad := sorted(label for label in present if not _STARS.fullmatch(label)):
            raise DataError(f"{parts[0].where}: {bad[0]!r} is no number of stars.")
        names = sorted(present, key=lambda name: int(name.split()[0]))
        return tuple(names), [[names.index(str(label)) for label in part.labels] for part in parts]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        return [int(label) for label in labels]

    def class_counts(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
        counts = Counter(labels)
        return tuple(counts[i] for i in range(len(names)))

    def relabel(self, labels: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        return [list(wanted).index(names[label]) for label in labels]

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(labels, dtype=np.int64)


class OrdinalHead(Head):
    """One output for each threshold."""

    problem = "multi_label_classification"

    def num_labels(self, names: Sequence[str]) -> int:
        return len(names) - 1


class Thresholds(Loss):
    """Binary cross-entropy of each threshold, divided by the rows."""

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        passed = labels[:, None] > torch.arange(logits.shape[1], device=logits.device)
        return F.binary_cross_entropy_with_logits(logits.float(), passed.float(), reduction="sum")


class OrdinalScorer(Scorer):
    """Outputs are logits (rows, classes - 1) of "more than class k"."""

    metrics = (KAPPA, WITHIN_ONE)

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return Thresholds()

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor]:
        return lambda logits, dim: torch.logit(logits.sigmoid().mean(dim))

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return (outputs > 0).sum(axis=1) if outputs.ndim == 2 else outputs

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        return class_breakdowns(self.decisions(outputs), labels, names)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        passed = 1 / (1 + np.exp(-output.astype(np.float64)))
        above = {name: float(p) for name, p in zip(names[1:], passed, strict=True)}
        return {"rating": names[int((output > 0).sum())], "at_least": above}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return str(prediction["rating"])


PARTS: dict[str, Any] = {"schema": StarSchema(), "head": OrdinalHead(), "scorer": OrdinalScorer()}
register_kind(TaskKind("ordinal", "one of several classes that have an order", **PARTS))

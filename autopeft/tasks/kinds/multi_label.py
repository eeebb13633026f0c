"""Multi-label classification: any number of labels for each text or pair of texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError, TaskError
from autopeft.tasks.kinds.breakdown import Breakdown, shares_in_words
from autopeft.tasks.kinds.class_metrics import (
    MACRO_F1,
    sklearn_metrics,
    variance_of_f1,
    variance_of_share,
)
from autopeft.tasks.kinds.contract import ClassWeights, TaskKind
from autopeft.tasks.kinds.label_lists import is_label_lists, label_columns, read_label_lists
from autopeft.tasks.kinds.loss import Loss
from autopeft.tasks.kinds.metric import Metric, ScoredRows
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.table import ColumnNames, Columns, RawRows, Table, listed

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["LRAP", "MICRO_F1", "SUBSET_ACCURACY", "LabelwiseLoss", "MultiLabel"]

_CLAIM = 0.6
_PLENTY = 50  # labels that any data may have
_MOST = 5_000  # labels: a row holds a number for each
_HEAVIEST = 100.0  # weight of a rare label's rows, where balanced
Numbers = NDArray[Any]


def _counts(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row the labels that are right, those that were predicted, and those that it has."""
    said, there = np.asarray(predictions) > 0, np.asarray(labels) > 0
    return np.stack([(said & there).sum(1), said.sum(1), there.sum(1)], axis=1).astype(np.float64)


def _f1(sums: Numbers) -> float:
    right, said, there = sums
    return float(2 * right / (said + there)) if said + there else 0.0


def _right_rows(predictions: Numbers, labels: Numbers) -> Numbers:
    right = (np.asarray(predictions) > 0) == (np.asarray(labels) > 0)
    return np.asarray(right.all(axis=1), dtype=np.float64)


def _positives(rows: ScoredRows) -> int:
    return sum(rows.classes) or rows.rows


MICRO_F1 = Metric(
    "micro_f1", 0, 1, "F1 over all labels of all rows, each predicted where it is more probable than not",
    lambda found, truth: _f1(_counts(found, truth).sum(axis=0)),
    lambda score, rows: variance_of_f1(score, _positives(rows)), by_row=_counts, of_sums=_f1,
)  # fmt: skip
SUBSET_ACCURACY = Metric(
    "subset_accuracy", 0, 1, "share of rows whose labels are all right",
    lambda found, truth: float(_right_rows(found, truth).mean()),
    lambda score, rows: variance_of_share(score, rows.rows), by_row=_right_rows,
)  # fmt: skip
LRAP = Metric(
    "lrap", 0, 1, "label ranking average precision: how far above the others a row's labels are",
    lambda found, truth: float(sklearn_metrics().label_ranking_average_precision_score(truth > 0, found)),
    lambda score, rows: variance_of_share(score, rows.rows), raw=True,
)  # fmt: skip
"""As scikit-learn computes it (Schapire and Singer 2000, the mean over rows). Its variance is the largest
that a mean of values from 0 to 1 can have."""


class LabelwiseLoss(Loss):
    """Binary cross-entropy of each label, divided by rows times labels: the loss of transformers for
    `multi_label_classification`.

    Args:
        class_weights: of each label, by which the losses of the rows that have it are multiplied
        (`pos_weight`).
    """

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        self.class_weights = (
            None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        )

    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits (rows, labels) and labels of 0 and 1 (rows, labels)."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.binary_cross_entropy_with_logits(
            logits.float(), labels.float(), pos_weight=weights, reduction="sum"
        )

    def weight(self, labels: Tensor) -> float:
        return float(labels.numel())

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`; of labels that all rows have as well."""
        most = math.log((len(labels) + 0.5) / 0.5)
        varies = labels.min(0).values < labels.max(0).values
        return torch.where(varies, logits, logits.clamp(-most, most))


@register_kind("multi_label")
class MultiLabel(TaskKind):
    """Labels are rows of 0 and 1, one for each label; outputs are logits (rows, labels), decisions 1 where
    the logit is above 0, so that the label is more probable than not."""

    summary = "any number of labels for a text"
    metrics = (MICRO_F1, MACRO_F1, SUBSET_ACCURACY, LRAP)
    default_metric = MICRO_F1.name
    tempered = True
    row_distribution = False
    tells = True

    # Data
    # --------------------------------------------------------------------------------------------------

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims texts with lists of labels, and several label columns where `--label` names them."""
        return _CLAIM if is_label_lists(tables["train"], named) else 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """See `label_columns`."""
        return label_columns(table, named)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """See `read_label_lists`."""
        return read_label_lists(table, columns)

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """Labels are in the given `order`, else sorted, by number where all are whole numbers.

        Raises:
            DataError: there is one label alone, or far too many, or a part has one that the first one lacks.
        """
        present = {name for part in parts for row in part.labels for name in row}
        if order and present <= set(order):
            names = list(order)
        else:
            whole = all(name.removeprefix("-").isdecimal() and len(name) < 20 for name in present)
            names = sorted(present, key=(lambda name: (int(name), name)) if whole else None)
            _check_names(parts, names)
            known = {name for row in parts[0].labels for name in row}
            for part in parts[1:]:
                if unknown := sorted({name for row in part.labels for name in row} - known):
                    raise DataError(
                        f"{part.where} has labels that {parts[0].where} lacks, so no model can learn them: "
                        f"{listed(unknown)}."
                    )
        index = {name: i for i, name in enumerate(names)}
        return tuple(names), [[_marked(row, index) for row in part.labels] for part in parts]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The rarest label of the row; one more than there are where it has none."""
        if not labels:
            return []
        table = np.asarray(labels)
        counts = np.where(table > 0, table.sum(axis=0), len(table) + 1)
        rarest = counts.argmin(axis=1)
        return [int(r) if any(row) else table.shape[1] for r, row in zip(rarest, labels, strict=True)]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Raises `DataError` where no row, or every row, of train has each label."""
        if len({tuple(row) for row in train.labels}) < 2:
            raise DataError(f"{name}: all rows of train have the same labels; there is nothing to learn.")

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """Factors of the losses of rows that have a label; balanced ones are as many rows without it as there
        are rows with it, from 1/100 to 100.

        Raises:
            TaskError: they are no positive numbers, one for each label.
        """
        if asked is None:
            return None
        if isinstance(asked, str):
            if asked != "balanced":
                raise TaskError(f"class_weights={asked!r} is neither 'balanced' nor a list of numbers.")
            counts = np.asarray(self.class_counts(labels, names), dtype=np.float64)
            ratio = (len(labels) - counts) / np.maximum(counts, 1)
            return [float(w) for w in np.clip(ratio, 1 / _HEAVIEST, _HEAVIEST)]
        weights = [float(weight) for weight in asked]
        if len(weights) != len(names) or not all(np.isfinite(w) and w > 0 for w in weights):
            raise TaskError(
                f"{len(names)} positive weights are needed, one for each label, but got {weights}."
            )
        return weights

    def class_counts(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
        """Rows that have each label, in index order."""
        if not len(labels):
            return (0,) * len(names)
        return tuple(int(n) for n in np.asarray(labels).sum(axis=0))

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How many labels rows have on average, and how many rows have each."""
        if not len(labels):
            return ""
        counts = self.class_counts(labels, names)
        return f"{sum(counts) / len(labels):.2f} labels a row: {shares_in_words(counts, names, len(labels))}"

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The most frequent labels, as many as give the highest micro F1."""
        counts = np.asarray(self.class_counts(labels, names))
        order = np.argsort(-counts, kind="stable")
        right = np.cumsum(counts[order])
        f1 = 2 * right / (np.arange(1, len(order) + 1) * len(labels) + max(1, counts.sum()))
        chosen = order[: int(f1.argmax()) + 1]
        answer = np.zeros(len(names), dtype=np.float32)
        answer[chosen] = 1
        return f"always {_listed([names[i] for i in sorted(chosen)])}", answer

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `TaskKind`; labels that no row of a split has."""
        found = super().remarks(splits, names, metric, weighted=weighted)
        for name, split in splits.items():
            missing = [
                names[i] for i, n in enumerate(self.class_counts(split.labels, names)) if not n and len(split)
            ]
            if missing:
                found.append(f"{name} has no row with {listed(missing)}: scores say nothing of that.")
        return found

    def relabel(self, labels: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        index = {name: i for i, name in enumerate(wanted)}
        return [_marked([names[i] for i, there in enumerate(row) if there], index) for row in labels]

    # Model
    # --------------------------------------------------------------------------------------------------

    def num_labels(self, names: Sequence[str]) -> int:
        return len(names)

    def config(self, names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": len(names), "problem_type": "multi_label_classification"}

    def average(self) -> Callable[[Tensor, int], Tensor]:
        """The logit of the mean probability of each label."""
        return _logit_of_mean

    # Training and scores
    # --------------------------------------------------------------------------------------------------

    def label_array(self, labels: Sequence[Any]) -> NDArray[Any]:
        """0 and 1 (rows, labels) in float32."""
        return np.asarray(labels, dtype=np.float32)

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return LabelwiseLoss(class_weights)

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """1 where a logit is above 0, else 0, (rows, labels) in float32."""
        return (np.asarray(outputs) > 0).astype(np.float32)

    def _scored(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        found, truth = super()._scored(metric, outputs, labels)
        if truth.ndim != 2 or found.shape != truth.shape:
            raise TaskError(
                f"Cannot score predictions of shape {found.shape} against labels {truth.shape}: a row "
                "has one for each label."
            )
        return found, truth

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Binary cross-entropy of logits, all rows and labels alike."""
        logits, truth = np.asarray(outputs, dtype=np.float64), np.asarray(labels, dtype=np.float64)
        if logits.shape != truth.shape or not len(truth):
            return None
        return float(np.mean(np.logaddexp(0, logits) - truth * logits))

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Precision, recall, F1 and support of each label."""
        scores = sklearn_metrics().precision_recall_fscore_support(
            labels > 0, self.decisions(outputs) > 0, average=None, zero_division=np.nan
        )
        rows = tuple(
            (name, float(p), float(r), float(f), int(n))
            for name, p, r, f, n in zip(names, *scores, strict=True)
        )
        return (Breakdown("labels", "Each label", ("label", "precision", "recall", "F1", "support"), rows),)

    def tell(self, rows: Split, outputs: NDArray[Any], names: Sequence[str]) -> list[tuple[str, str]]:
        """The labels of each row, right and predicted."""
        found = self.decisions(outputs)

        def told(marks: Sequence[Any]) -> str:
            return _listed([name for name, there in zip(names, marks, strict=True) if there])

        return [(told(truth), told(own)) for truth, own in zip(rows.labels, found, strict=True)]

    # Use
    # --------------------------------------------------------------------------------------------------

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """The `labels` that are more probable than not, the `probabilities` of all and the `logits`."""
        logits = [float(v) for v in output]
        shares = {name: float(expit(v)) for name, v in zip(names, logits, strict=True)}
        return {
            "labels": [name for name, logit in zip(names, logits, strict=True) if logit > 0],
            "probabilities": shares,
            "logits": logits,
        }

    def line(self, prediction: Mapping[str, Any]) -> str:
        shares = prediction["probabilities"]
        return ", ".join(f"{n} {shares[n]:.4f}" for n in prediction["labels"]) or _NONE

    def describe_labels(self, names: Sequence[str]) -> str:
        return f"any of {', '.join(names)}"


_NONE = "(none)"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or _NONE


def _marked(row: Sequence[str], index: Mapping[str, int]) -> tuple[int, ...]:
    """0 and 1 for each label, in index order."""
    marks = [0] * len(index)
    for name in row:
        marks[index[name]] = 1
    return tuple(marks)


def _check_names(parts: Sequence[RawRows], names: Sequence[str]) -> None:
    where, rows = parts[0].where, sum(len(part.labels) for part in parts)
    if len(names) < 2:
        raise DataError(f"{where}: its rows have {len(names)} different labels; two are needed.")
    if len(names) > min(_MOST, max(_PLENTY, rows // 2)):
        raise DataError(
            f"{where}: {len(names):,} different labels in {rows:,} rows are too many to be learnt. Name "
            "the label column with --label."
        )


def _logit_of_mean(logits: Tensor, dim: int) -> Tensor:
    """log p̄ − log(1 − p̄) of the mean p̄ of the sigmoids; log of a mean is that up to the same constant."""
    yes = torch.logsumexp(F.logsigmoid(logits), dim=dim)
    return yes - torch.logsumexp(F.logsigmoid(-logits), dim=dim)

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

from autopeft.errors import TaskError
from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds.class_metrics import MACRO_F1, sklearn_metrics
from autopeft.tasks.kinds.classification import CLASSIFICATION
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.label_lists import LabelsSchema
from autopeft.tasks.kinds.metric import Metric, f1_of_counts, f1_variance, mean_metric, mean_variance
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.scorer import Breakdown, ClassWeights, Loss, Scorer, WeightedLoss
from autopeft.tasks.kinds.task_kind import TaskKind

if TYPE_CHECKING:
    from autopeft.tasks.split import Split

__all__ = ["LRAP", "MICRO_F1", "SUBSET_ACCURACY", "LabelwiseLoss"]

_HEAVIEST = 100.0  # weight of a rare label's rows, where balanced
Numbers = NDArray[Any]


def _counts(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row the labels that are right, those that were predicted, and those that it has."""
    said, there = np.asarray(predictions) > 0, np.asarray(labels) > 0
    return np.stack([(said & there).sum(1), said.sum(1), there.sum(1)], axis=1).astype(np.float64)


def _right_rows(predictions: Numbers, labels: Numbers) -> Numbers:
    right = (np.asarray(predictions) > 0) == (np.asarray(labels) > 0)
    return np.asarray(right.all(axis=1), dtype=np.float64)


MICRO_F1 = Metric(
    "micro_f1", 0, 1, "F1 over all labels of all rows, each predicted where it is more probable than not",
    lambda found, truth: f1_of_counts(_counts(found, truth).sum(axis=0)),
    lambda score, rows: f1_variance(score, sum(rows.classes) or rows.rows),
    by_row=_counts, of_sums=f1_of_counts,
)  # fmt: skip
SUBSET_ACCURACY = mean_metric("subset_accuracy", "share of rows whose labels are all right", _right_rows)
LRAP = Metric(
    "lrap", 0, 1, "label ranking average precision: how far above the others a row's labels are",
    lambda found, truth: float(sklearn_metrics().label_ranking_average_precision_score(truth > 0, found)),
    mean_variance, raw=True,
)  # fmt: skip
"""As scikit-learn computes it (Schapire and Singer 2000, the mean over rows). Its variance is the largest
that a mean of values from 0 to 1 can have."""


class LabelsHead(Head):
    """One output for each label, each by itself."""

    row_distribution = False

    problem = "multi_label_classification"


class LabelwiseLoss(WeightedLoss):
    """Binary cross-entropy of each label, divided by rows times labels: the loss of transformers for
    `multi_label_classification`.

    Args:
        class_weights: of each label, by which the losses of the rows that have it are multiplied
        (`pos_weight`).
    """

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of logits (rows, labels) and labels of 0 and 1 (rows, labels)."""
        return F.binary_cross_entropy_with_logits(
            logits.float(),
            batch["labels"].float(),
            pos_weight=self.weights_on(logits.device),
            reduction="sum",
        )

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Over rows and labels: each label is there or not."""
        there_or_not = [torch.stack([found, torch.zeros_like(found)], dim=-1) for found in (logits, others)]
        return symmetric_divergence(*there_or_not).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        return float(batch["labels"].numel())

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Loss`; of labels that all rows have as well."""
        most = math.log((len(labels) + 0.5) / 0.5)
        varies = labels.min(0).values < labels.max(0).values
        return torch.where(varies, logits, logits.clamp(-most, most))


class LabelsScorer(Scorer):
    """Outputs are logits (rows, labels), decisions 1 where the logit is above 0, so that the label is more
    probable than not."""

    metrics = (MICRO_F1, MACRO_F1, SUBSET_ACCURACY, LRAP)
    tempered = True
    tells = True

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """Factors of the losses of rows that have a label; balanced ones are as many rows without it as there
        are rows with it, from 1/100 to 100.

        Raises:
            TaskError: they are no positive numbers, one for each label.
        """
        if asked == "balanced":
            counts = np.asarray(labels).sum(axis=0)
            ratio = (len(labels) - counts) / np.maximum(counts, 1)
            return [float(w) for w in np.clip(ratio, 1 / _HEAVIEST, _HEAVIEST)]
        return CLASSIFICATION.scorer.class_weights(asked, labels, names)

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The most frequent labels, as many as give the highest micro F1."""
        counts = np.asarray(labels).sum(axis=0)
        order = np.argsort(-counts, kind="stable")
        right = np.cumsum(counts[order])
        f1 = 2 * right / (np.arange(1, len(order) + 1) * len(labels) + max(1, counts.sum()))
        chosen = order[: int(f1.argmax()) + 1]
        answer = np.zeros(len(names), dtype=np.float32)
        answer[chosen] = 1
        return f"always {_listed([names[i] for i in sorted(chosen)])}", answer

    def average(self, batch: Mapping[str, Tensor]) -> Callable[[Tensor, int], Tensor]:
        """The logit of the mean probability of each label."""
        return _logit_of_mean

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return LabelwiseLoss(class_weights)

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """1 where a logit is above 0, else 0, (rows, labels) in float32."""
        return (np.asarray(outputs) > 0).astype(np.float32)

    def compared(
        self, metric: Metric, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        found, truth = super().compared(metric, outputs, labels)
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


def _logit_of_mean(logits: Tensor, dim: int) -> Tensor:
    """log p̄ − log(1 − p̄) of the mean p̄ of the sigmoids; log of a mean is that up to the same constant."""
    yes = torch.logsumexp(F.logsigmoid(logits), dim=dim)
    return yes - torch.logsumexp(F.logsigmoid(-logits), dim=dim)


register_kind(
    TaskKind(
        "multi_label",
        "any number of labels for a text",
        schema=LabelsSchema(),
        encoder=Encoder(np.float32),
        head=LabelsHead(),
        scorer=LabelsScorer(),
    )
)

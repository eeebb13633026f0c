"""Classification: one class for each text or pair of texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional as F

from autopeft.errors import DataError, TaskError
from autopeft.nn import symmetric_divergence
from autopeft.tasks.kinds.class_metrics import ACCURACY, F1, MACRO_F1, MATTHEWS, class_breakdowns
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.registry import register_kind
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.kinds.scorer import Breakdown, ClassWeights, Loss, Scorer, WeightedLoss
from autopeft.tasks.kinds.task_kind import TaskKind
from autopeft.tasks.table import ColumnNames, RawRows, Table, listed, numbers_of, same_numbers

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = ["CLASSIFICATION", "ClassHead", "ClassSchema", "ClassScorer", "CrossEntropy"]

_CLAIM = 0.1  # what no other kind claims is classes
_PLENTY = 20  # classes that any data may have
# A class is rare below this part of an equal share, which for two classes is 20 % of the rows: from there on
# data are called moderately unbalanced (Google, Machine Learning Crash Course, "Imbalanced datasets").
_RARE = 0.4


class ClassSchema(Schema):
    """Labels are class indices."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        return _CLAIM

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """Classes are in the given `order`, else sorted (by number where all are whole numbers).

        Raises:
            DataError: labels are not finite numbers, a class is missing from the first part, or they are not
                all among `order` and are all the same or nearly all different.
        """
        numbers = numbers_of(parts)
        whole = numbers is not None and all(n == int(n) for part in numbers for n in part)
        if numbers is None:
            named = [[str(value).strip() for value in part.labels] for part in parts]
        elif whole:  # `1`, `1.0` and `"1"` are one class
            named = [[_whole_number(value) for value in part.labels] for part in parts]
        else:  # 1 and 1.0 are one class, and text stays as it is
            named = [
                [str(float(v)) if isinstance(v, int | np.integer) else str(v).strip() for v in part.labels]
                for part in parts
            ]
        present = {name for part in named for name in part}
        same = same_numbers(present, order)
        where, rows = parts[0].where, sum(map(len, named))
        if order and {same.get(name, name) for name in present} <= set(order):
            classes = list(order)
            named = [[same.get(name, name) for name in part] for part in named]
        elif len(present) < 2:
            raise DataError(
                f"{where}: all rows have the label {next(iter(present))!r}; two classes are needed."
            )
        elif len(present) > max(_PLENTY, rows // 2):
            raise DataError(
                f"{where}: {len(present):,} different labels in {rows:,} rows are not classes. Name the "
                "label column with --label; for numbers to be predicted as such choose --kind regression."
            )
        else:
            classes = sorted(present, key=int if whole else None)
        for part, found in zip(parts[1:], named[1:], strict=True):
            if unknown := sorted(set(found) - set(named[0])):
                raise DataError(
                    f"{part.where} has labels that {where} lacks, so no model can learn them: "
                    f"{listed(unknown)}."
                )
        index = {name: i for i, name in enumerate(classes)}
        return tuple(classes), [[index[name] for name in found] for found in named]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        return [int(label) for label in labels]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Raises `DataError` where only one class is left to train on."""
        if len(set(train.labels)) < 2:
            raise DataError(
                f"{name}: the train split has one class only after splitting; more rows are needed."
            )

    def class_counts(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[int, ...]:
        counts = Counter(int(label) for label in labels)
        return tuple(counts[i] for i in range(len(names)))

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `Schema.remarks`; classes that are missing, and rare ones."""
        found = super().remarks(splits, names, metric, weighted=weighted)
        for name, split in splits.items():
            counts = self.class_counts(split.labels, names)
            missing = [names[i] for i, count in enumerate(counts) if count == 0]
            if missing and name == "train":
                found.append(f"train has no row of {listed(missing)}: no model can learn that.")
            elif missing and len(missing) == len(names) - 1:
                found.append(
                    f"{name} has rows of one class only: a score on it cannot tell one model from another."
                )
            elif missing:
                found.append(f"{name} has no row of {listed(missing)}: a score on it says nothing of that.")

        # A class is rare, and the metric or the loss pays little for it.
        counts = self.class_counts(splits["train"].labels, names)
        rare, most = counts.index(min(counts)), counts.index(max(counts))
        ways = ["--metric macro_f1"] if metric == ACCURACY.name else []
        ways += [] if weighted else ["--class-weights balanced"]
        if ways and counts[rare] * len(names) < _RARE * sum(counts):
            shares = [f"{names[i]!r} is {100 * counts[i] / sum(counts):.1f} %" for i in (rare, most)]
            found.append(
                f"Classes are unbalanced: of train {' and '.join(shares)}. Consider {' and '.join(ways)}."
            )
        return found

    def relabel(self, labels: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        places = [list(wanted).index(name) for name in names]
        return [places[int(label)] for label in labels]


class ClassHead(Head):
    """One output for each class."""

    problem = "single_label_classification"

    def names_in(self, config: Any) -> tuple[str, ...] | None:
        """See `Head`; a model that was never told its kind of problem has classes."""
        if config.problem_type not in (None, self.problem):
            return None
        return tuple(str(label) for _, label in sorted((config.id2label or {}).items()))


class CrossEntropy(WeightedLoss):
    """Cross-entropy, optionally weighted by class; the divisor is the rows, or the sum of their weights."""

    def total(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of logits (rows, classes) and class indices (rows,)."""
        return F.cross_entropy(
            logits.float(), batch["labels"], weight=self.weights_on(logits.device), reduction="sum"
        )

    def divergence(self, logits: Tensor, others: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        found, weights = symmetric_divergence(logits, others), self.weights_on(logits.device)
        return (found if weights is None else found * weights[batch["labels"]]).sum()

    def weight(self, batch: Mapping[str, Tensor]) -> float:
        if self.class_weights is None:
            return super().weight(batch)
        return float(self.class_weights[batch["labels"].cpu()].sum())


class ClassScorer(Scorer):
    """Outputs are logits (rows, classes), decisions the class of the largest."""

    metrics = (ACCURACY, F1, MACRO_F1, MATTHEWS)
    tempered = True

    def row_loss(self, outputs: NDArray[Any], labels: NDArray[Any]) -> float | None:
        """Cross-entropy of logits (rows, classes) and class indices (rows,), all rows alike."""
        logits = np.asarray(outputs, dtype=np.float64)
        if logits.ndim != 2 or len(logits) != len(labels) or not len(labels):
            return None
        told = logits[np.arange(len(labels)), np.asarray(labels, dtype=np.int64)]
        return float(np.mean(logsumexp(logits, axis=1) - told))

    def check_metric(self, metric: Metric, names: Sequence[str], rows: Split | None = None) -> None:
        """Raises `TaskError` for F1 with more than two classes."""
        if metric == F1 and len(names) != 2:
            raise TaskError(f"metric='f1' needs two classes, but the task has {len(names)}; use macro_f1.")

    def class_weights(
        self, asked: ClassWeights, labels: Sequence[Any], names: Sequence[str]
    ) -> list[float] | None:
        """See `Scorer.class_weights`; balanced ones have the mean 1 over these labels, and their sum is the
        same for each class."""
        if asked is None:
            return None
        if isinstance(asked, str):
            if asked != "balanced":
                raise TaskError(f"class_weights={asked!r} is neither 'balanced' nor a list of numbers.")
            counts = Counter(labels)
            if empty := [name for i, name in enumerate(names) if counts[i] == 0]:
                raise TaskError(
                    f"Balanced weights need every class in train; none of {', '.join(map(repr, empty))} is."
                )
            return [len(labels) / (len(names) * counts[i]) for i in range(len(names))]
        weights = [float(weight) for weight in asked]
        if len(weights) != len(names) or not all(math.isfinite(w) and w > 0 for w in weights):
            raise TaskError(
                f"{len(names)} positive class weights are needed ({', '.join(names)}), but got {weights}."
            )
        return weights

    def constant(self, labels: Sequence[Any], names: Sequence[str]) -> tuple[str, Any] | None:
        """The class that most rows have; of equal ones the first."""
        counts = Counter(int(label) for label in labels)
        most = max(range(len(names)), key=lambda i: counts[i])
        return f"always {names[most]!r}", most

    def loss(self, names: Sequence[str], class_weights: Sequence[float] | None = None) -> Loss:
        return CrossEntropy(class_weights)

    def decisions(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """The class of the largest logit; a single column is taken as decisions."""
        if outputs.ndim != 2:
            return outputs
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)

    def breakdown(
        self, outputs: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
    ) -> tuple[Breakdown, ...]:
        """Precision, recall, F1 and support of each class, and the confusion matrix."""
        return class_breakdowns(self.decisions(outputs), labels, names)

    def present(self, output: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
        """`label`, its `probability`, the `probabilities` of all classes and the `logits`."""
        logits = [float(v) for v in output]
        top = max(logits)
        weights = [math.exp(v - top) for v in logits]
        total = sum(weights)
        shares = {name: w / total for name, w in zip(names, weights, strict=True)}
        best = max(shares, key=lambda name: shares[name])
        return {"label": best, "probability": shares[best], "probabilities": shares, "logits": logits}

    def line(self, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['label']}  {prediction['probability']:.4f}"


def _whole_number(value: Any) -> str:
    try:
        return str(int(value))
    except ValueError:
        return str(int(float(value)))


CLASSIFICATION = register_kind(
    TaskKind(
        "classification",
        "one of two or more classes",
        schema=ClassSchema(),
        head=ClassHead(),
        scorer=ClassScorer(),
    )
)

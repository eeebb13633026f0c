"""Metrics of class indices, and tables of where they are wrong; scikit-learn does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds.metric import Metric, ScoredRows, f1_variance, mean_variance, shrunk
from autopeft.tasks.kinds.scorer import Breakdown, Entry

__all__ = [
    "ACCURACY",
    "F1",
    "MACRO_F1",
    "MATTHEWS",
    "class_breakdowns",
    "shares_in_words",
    "sklearn_metrics",
]

_SHOWN = 6  # classes
Numbers = NDArray[Any]


def sklearn_metrics() -> Any:
    """`sklearn.metrics`, which takes a second to import: commands that score nothing do without."""
    from sklearn import metrics

    return metrics


def _matthews(predictions: Numbers, labels: Numbers) -> float:
    if len(np.unique(predictions)) < 2 or len(np.unique(labels)) < 2:
        return 0.0
    return float(sklearn_metrics().matthews_corrcoef(labels, predictions))


def _f1_variance(score: float, rows: ScoredRows) -> float:
    return f1_variance(score, rows.classes[1] if len(rows.classes) > 1 else rows.rows)


def _macro_f1_variance(score: float, rows: ScoredRows) -> float:
    """Of the mean of F1s, if all had this score and erred together: an upper bound for equal classes."""
    classes = rows.classes or (rows.rows,)
    return (math.fsum(math.sqrt(f1_variance(score, n)) for n in classes) / len(classes)) ** 2


def _matthews_variance(score: float, rows: ScoredRows) -> float:
    """Of the phi coefficient (Bishop, Fienberg and Holland 1975, ch. 11) where predictions are as unbalanced
    as labels, the rarest class against the rest; (1 − φ²)/n for balanced ones."""
    phi = 2 * shrunk((1 + score) / 2, rows.rows) - 1
    skew = 0.0
    if rows.classes and rows.rows:
        p = min(max(min(rows.classes), 1) / rows.rows, 0.5)
        skew = (1 - 2 * p) ** 2 / (p * (1 - p))
    return (1 - phi**2 + skew * max(0.0, phi * (1 - phi) * (1 - phi / 2))) / max(rows.rows, 1)


ACCURACY = Metric(
    "accuracy", 0, 1, "share of rows that are right", lambda p, y: sklearn_metrics().accuracy_score(y, p),
    mean_variance,
)  # fmt: skip
F1 = Metric(
    "f1", 0, 1, "F1 of the second of two classes",
    lambda p, y: sklearn_metrics().f1_score(y, p, zero_division=0.0), _f1_variance,
)  # fmt: skip
MACRO_F1 = Metric(
    "macro_f1", 0, 1, "mean F1 of the classes, each counted the same",
    lambda p, y: sklearn_metrics().f1_score(y, p, average="macro", zero_division=0.0), _macro_f1_variance,
)  # fmt: skip
MATTHEWS = Metric(
    "matthews", -1, 1, "Matthews correlation; 0 for constant predictions", _matthews, _matthews_variance
)


def class_breakdowns(
    predictions: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
) -> tuple[Breakdown, ...]:
    """`classes` (precision, recall, F1 and support of each class) and `confusion` (rows by true class and
    predicted class).

    Precision is NaN for a class that was never predicted, recall for one without rows; F1 is NaN where both
    are.

    Args:
        predictions, labels: class indices, shape (rows,).
        names: of the classes in index order.
    """
    indices, sk = list(range(len(names))), sklearn_metrics()
    scores = sk.precision_recall_fscore_support(labels, predictions, labels=indices, zero_division=np.nan)
    classes = tuple(
        (name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(names, *scores, strict=True)
    )
    matrix = sk.confusion_matrix(labels, predictions, labels=indices)
    confusion: tuple[tuple[Entry, ...], ...] = tuple(
        (name, *(int(n) for n in row)) for name, row in zip(names, matrix, strict=True)
    )
    return (
        Breakdown("classes", "Each class", ("class", "precision", "recall", "F1", "support"), classes),
        Breakdown(
            "confusion",
            "Rows of each class (down) by what was predicted (across)",
            ("true", *names),
            confusion,
        ),
    )


def shares_in_words(counts: Sequence[int], names: Sequence[str], whole: int) -> str:
    """The largest counts with their names and shares of the whole, and the smallest one."""
    ranked = sorted(zip(counts, names, strict=False), key=lambda pair: -pair[0])
    # Names come from users' files: what cannot be printed is escaped.
    shares = [
        f"{name if name.isprintable() else repr(name)} {count:,} ({100 * count / max(whole, 1):.1f} %)"
        for count, name in ranked
    ]
    rest = shares[_SHOWN:]
    return ", ".join([*shares[:_SHOWN], *([f"{len(rest)} more down to {rest[-1]}"] if rest else [])])

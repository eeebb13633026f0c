"""What a single score leaves out: tables of where the predictions of a model are right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds.class_metrics import sklearn_metrics

__all__ = ["Breakdown", "class_breakdowns", "shares_in_words"]

_SHOWN = 6  # classes

Entry: TypeAlias = str | int | float


@dataclass(frozen=True)
class Breakdown:
    """A table about predictions.

    Attributes:
        name: by which it is found in data.
        title: above the table.
        headers: of the columns; in the first one are names.
        rows: as long as the headers; a number that is not defined is NaN.
    """

    name: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The table as data."""
        return {"columns": list(self.headers), "rows": [list(row) for row in self.rows]}


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
    shown = [_share(count, name, whole) for count, name in ranked[:_SHOWN]]
    rest = ranked[_SHOWN:]
    if rest:
        shown.append(f"{len(rest)} more down to {_share(*rest[-1], whole)}")
    return ", ".join(shown)


def _share(count: int, name: str, rows: int) -> str:
    # Names come from users' files: what cannot be printed is escaped.
    return f"{name if name.isprintable() else repr(name)} {count:,} ({100 * count / max(rows, 1):.1f} %)"

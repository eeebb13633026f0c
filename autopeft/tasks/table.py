"""Rows of a user's table: which columns are meant, whether all values are there, what kind of label it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import DataError, near
from autopeft.tasks.metrics import METRICS
from autopeft.tasks.task import Kind, Labels

__all__ = ["REGRESSION_VALUES", "Columns", "RawRows", "Table", "choose_columns", "encode_labels", "read_rows"]

REGRESSION_VALUES = 10
_PAIRS = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("text", "text_pair"), ("premise", "hypothesis"),
    ("question1", "question2"), ("question", "sentence"), ("question", "passage"), ("query", "passage"),
)  # fmt: skip
_TEXTS = (
    "text", "sentence", "sentence1", "content", "review", "message", "tweet", "comment", "question",
    "document", "body", "title",
)  # fmt: skip
_LABELS = (
    "label", "labels", "target", "class", "category", "sentiment", "score", "rating", "gold_label", "y",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Columns of values as they were read; `label_names` where the format itself names the classes."""

    where: str
    columns: Mapping[str, Sequence[Any]]
    label_names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text, its pair (if any) and the label."""

    text: str
    text_pair: str | None
    label: str


@dataclass(frozen=True)
class RawRows:
    """Checked texts and labels that are not yet class indices or numbers."""

    where: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]


def choose_columns(table: Table, text: str | None, text_pair: str | None, label: str | None) -> Columns:
    """The columns that were named, or those with obvious names (`text`, `sentence1`, `sentence2`, `label`).

    A pair is looked for only where neither text column was named.

    Raises:
        DataError: a named column does not exist, or no obvious one does.
    """
    names = list(table.columns)
    for option, name in (("text", text), ("text-pair", text_pair), ("label", label)):
        if name is not None and name not in names:
            raise DataError(
                f"{table.where} has no column {name!r} for --{option}; "
                f"it has {_listed(names)}.{near(name, names)}"
            )
    lower = {name.lower(): name for name in reversed(names)}
    if text is None and text_pair is None:
        for first, second in _PAIRS:
            if first in lower and second in lower:
                text, text_pair = lower[first], lower[second]
                break
    text = text or _obvious(lower, _TEXTS, "text", "--text", table)
    label = label or _obvious(lower, _LABELS, "label", "--label", table)
    chosen = Columns(text, text_pair, label)
    used = [name for name in (text, text_pair, label) if name is not None]
    if len(set(used)) < len(used):
        raise DataError(f"One column of {table.where} cannot be two things at once: {chosen}.")
    return chosen


def read_rows(table: Table, columns: Columns) -> RawRows:
    """The chosen columns, with every value checked.

    Raises:
        DataError: a column is missing, there are no rows, a text is empty or no string, or a label is
            missing; the message gives row numbers, the first data row being 1.
    """
    for name in (columns.text, columns.text_pair, columns.label):
        if name is not None and name not in table.columns:
            raise DataError(f"{table.where} has no column {name!r}; it has {_listed(list(table.columns))}.")
    if not len(table.columns[columns.text]):
        raise DataError(f"{table.where} has no rows.")
    texts = _texts(table, columns.text)
    pairs = None if columns.text_pair is None else _texts(table, columns.text_pair)
    labels = list(table.columns[columns.label])
    _refuse(table, columns.label, "no label", [i for i, value in enumerate(labels) if _missing(value)])
    odd = [i for i, value in enumerate(labels) if not isinstance(value, str | int | float | bool)]
    _refuse(table, columns.label, "a label that is neither text nor a number", odd)
    names = table.label_names.get(columns.label)
    if names is not None:
        hidden = [i for i, value in enumerate(labels) if not 0 <= value < len(names)]
        _refuse(table, columns.label, "no label (hidden, stored as -1)", hidden)
        labels = [names[value] for value in labels]
    return RawRows(table.where, texts, pairs, labels)


def encode_labels(
    parts: Sequence[RawRows], metric: str | None, order: Sequence[str] = ()
) -> tuple[Kind, tuple[str, ...], list[Labels]]:
    """Decide the kind of task and turn labels into class indices or numbers.

    The rule: labels that are all numbers, not all whole, and take more than 10 different values mean
        regression; everything else is classes. A regression metric makes any numbers regression, a
        classification metric makes any labels classes. Classes are in the given `order`, else sorted (by
        number where all are whole numbers).

    Raises:
        DataError: labels are not finite, all the same, nearly all different, or a class is missing from the
            first part.
    """
    numbers = [[_number(value) for value in part.labels] for part in parts]
    flat = [number for part in numbers for number in part]
    wanted = METRICS[metric].kind if metric in METRICS else None
    numeric = all(number is not None for number in flat)
    if wanted == "regression" and not numeric:
        raise DataError(
            f"{metric=} needs numbers as labels, but those of {parts[0].where} are not all numbers."
        )
    if numeric:
        for part, found in zip(parts, numbers, strict=True):
            bad = [i for i, number in enumerate(found) if number is not None and not math.isfinite(number)]
            if bad:
                raise DataError(f"{part.where}: labels that are not finite in {_rows(bad)}.")
    fractional = numeric and any(number is not None and number != int(number) for number in flat)
    if wanted == "regression" or (wanted is None and fractional and len(set(flat)) > REGRESSION_VALUES):
        if len(set(flat)) < 2:
            raise DataError(f"{parts[0].where}: all labels are {flat[0]}; there is nothing to learn.")
        return "regression", (), [[float(n) for n in found if n is not None] for found in numbers]
    return _as_classes(parts, order, whole=numeric and not fractional)


def _as_classes(
    parts: Sequence[RawRows], order: Sequence[str], *, whole: bool
) -> tuple[Kind, tuple[str, ...], list[Labels]]:
    named = [[_class_name(value, whole=whole) for value in part.labels] for part in parts]
    present = {name for part in named for name in part}
    classes = list(order) if order and present <= set(order) else sorted(present, key=int if whole else None)
    rows = sum(len(part) for part in named)
    if len(present) < 2:
        only = next(iter(present))
        raise DataError(f"{parts[0].where}: all rows have the label {only!r}; two classes are needed.")
    if len(present) > max(20, rows // 2):
        raise DataError(
            f"{parts[0].where}: {len(present):,} different labels in {rows:,} rows are not classes. Name the "
            "label column with --label; for numbers to be predicted as such choose --metric pearson."
        )
    for part, found in zip(parts[1:], named[1:], strict=True):
        if unknown := sorted(set(found) - set(named[0])):
            raise DataError(
                f"{part.where} has labels that {parts[0].where} lacks, so no model can learn them: "
                f"{_listed(unknown)}."
            )
    index = {name: i for i, name in enumerate(classes)}
    return "classification", tuple(classes), [[index[name] for name in found] for found in named]


def _class_name(value: Any, *, whole: bool) -> str:
    """A class's name; with whole numbers `1`, `1.0` and `"1"` are one class."""
    if not whole:
        return str(value).strip()
    try:
        return str(int(value))
    except ValueError:
        return str(int(float(value)))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _texts(table: Table, name: str) -> list[str]:
    values = list(table.columns[name])
    _refuse(table, name, "no text", [i for i, value in enumerate(values) if _missing(value)])
    odd = [i for i, value in enumerate(values) if not isinstance(value, str)]
    _refuse(table, name, "something that is not text", odd)
    return values


def _refuse(table: Table, column: str, what: str, rows: list[int]) -> None:
    if rows:
        raise DataError(f"{table.where}: column {column!r} has {what} in {_rows(rows)}. Mend or remove them.")


def _rows(indices: Sequence[int]) -> str:
    shown = ", ".join(str(i + 1) for i in indices[:5])
    more = f" and {len(indices) - 5:,} more" if len(indices) > 5 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {shown}{more}"


def _obvious(lower: Mapping[str, str], known: Sequence[str], what: str, option: str, table: Table) -> str:
    for name in known:
        if name in lower:
            return lower[name]
    raise DataError(
        f"{table.where} has no column with an obvious name for the {what}; "
        f"it has {_listed(list(table.columns))}. Name it with {option}."
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "no columns"

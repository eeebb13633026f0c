"""Rows of a user's table: which columns are meant, and whether all values are there."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np

from autopeft.errors import DataError, near

__all__ = [
    "NO_TEXT",
    "ColumnNames",
    "Columns",
    "RawRows",
    "Table",
    "as_numbers",
    "check_named",
    "choose_columns",
    "empty_rows",
    "is_unicode",
    "listed",
    "needed_column",
    "number_of",
    "numbers_of",
    "obvious_column",
    "peek_labels",
    "read_labels",
    "read_rows",
    "refuse_rows",
    "same_numbers",
    "unanswerable",
]

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
_CODE, _WHOLE = re.compile(r"[-+]?0\d+"), re.compile(r"[-+]?\d+")
NO_TEXT, _NO_LABEL = "no text", "no label"
_NOT_TEXT, _NOT_UNICODE = "something that is not text", "text that is not Unicode"


@dataclass(frozen=True)
class Table:
    """Columns of values as they were read; `label_names` where the format itself names the classes.

    `numbers_are_text` in the files of a folder whose labels count as numbers where they are; see
    `with_numbers`. In a single CSV they stay text.
    """

    where: str
    columns: Mapping[str, Sequence[Any]]
    label_names: Mapping[str, tuple[str, ...]]
    numbers_are_text: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def take(self, rows: Sequence[int]) -> Table:
        """The rows at these indices, in that order."""
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns)

    def with_numbers(self, column: str) -> Table:
        """The table with numbers in place of their text in a column, where `numbers_are_text`."""
        if not self.numbers_are_text or column not in self.columns:
            return self
        return replace(self, columns={**self.columns, column: as_numbers(self.columns[column])})


def as_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """A column of text as numbers where all of it is, and no code such as `007`; empty places are missing
    values then. Whole numbers keep all of their digits, so that ids stay apart."""
    filled = [value for value in values if value]
    if not filled or not all(isinstance(v, str) and "_" not in v and not _CODE.fullmatch(v) for v in filled):
        return values
    whole = all(map(_WHOLE.fullmatch, filled))
    try:
        return [
            None if not v else int(v) if whole or (_WHOLE.fullmatch(v) and int(v) != float(v)) else float(v)
            for v in values
        ]
    except ValueError:  # words, and whole numbers of more digits than Python reads
        return values


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a user named; `None` for those to be found by their obvious names."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns that hold the text, its pair (if any) and the label (where the kind of task has one)."""

    text: str
    text_pair: str | None
    label: str | None


@dataclass(frozen=True)
class RawRows:
    """Checked texts, labels that are not encoded yet, and further columns that a kind of task took."""

    where: str
    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    fields: Mapping[str, list[Any]] = field(default_factory=dict)


def choose_columns(
    table: Table,
    text: str | None,
    text_pair: str | None,
    label: str | None = None,
    *,
    labelled: bool = True,
    pair: bool | None = None,
) -> Columns:
    """The columns that were named, or those with obvious names (`text`, `sentence1`, `sentence2`, `label`).

    A pair is looked for only where neither text column was named.

    Args:
        labelled: whether there are labels; without, texts are to be answered.
        pair: whether each row is a pair of texts; `None`: where the names of the columns say so.

    Raises:
        DataError: a named column does not exist, or no obvious one does.
    """
    first_option, second_option = (
        ("--text", "--text-pair") if labelled else ("--text-column", "--text-pair-column")
    )
    check_named(table, ((first_option, text), (second_option, text_pair), ("--label", label)))
    if pair is not False and text_pair is None and (text is None or pair):
        lower = {name.lower(): name for name in reversed(list(table.columns))}
        for first, second in _PAIRS:
            if first in lower and second in lower and text in (None, lower[first]):
                text, text_pair = lower[first], lower[second]
                break
    text = text or needed_column(table, _TEXTS, "text", first_option)
    if pair and text_pair is None:
        raise DataError(
            f"{table.where} has no column with an obvious name for the second text of each pair; it has "
            f"{listed(list(table.columns))}. Name it with {second_option}."
        )
    if labelled:
        label = label or needed_column(table, _LABELS, "label", "--label")
    chosen = Columns(text, text_pair, label)
    used = [name for name in (text, text_pair, label) if name is not None]
    if len(set(used)) < len(used):
        raise DataError(f"One column of {table.where} cannot be two things at once: {chosen}.")
    return chosen


def obvious_column(table: Table, known: Sequence[str]) -> str | None:
    """The first of these names that a column has, whatever its capitals; `None` where none has."""
    lower = {name.lower(): name for name in reversed(list(table.columns))}
    return next((lower[name] for name in known if name in lower), None)


def needed_column(table: Table, known: Sequence[str], what: str, option: str) -> str:
    """The first of these names that a column has.

    Args:
        what: the column holds.
        option: by which it can be named.

    Raises:
        DataError: no column has one.
    """
    found = obvious_column(table, known)
    if found is None:
        raise DataError(
            f"{table.where} has no column with an obvious name for the {what}; it has "
            f"{listed(list(table.columns))}. Name it with {option}."
        )
    return found


def check_named(table: Table, asked: Sequence[tuple[str, str | None]]) -> None:
    """Compare the columns that were named, each beside the option that named it, with those of a table.

    Raises:
        DataError: one does not exist.
    """
    names = list(table.columns)
    for option, name in asked:
        if name is not None and name not in names:
            raise DataError(
                f"{table.where} has no column {name!r} for {option}; "
                f"it has {listed(names)}.{near(name, names)}"
            )


def empty_rows(table: Table, columns: Columns) -> list[int]:
    """Rows of which a chosen column holds nothing: no text, no words, no second text or no label."""
    names = (columns.text, columns.text_pair, columns.label)
    used = [table.columns[name] for name in names if name is not None and name in table.columns]
    words = table.columns.get(columns.text, ())
    without = {
        i for i, value in enumerate(words) if isinstance(value, list | tuple | np.ndarray) and not len(value)
    }
    return [i for i in range(len(table)) if i in without or any(_missing(values[i]) for values in used)]


def unanswerable(table: Table, columns: Columns) -> dict[int, str]:
    """Of the rows without a text that a model could be asked about what is wrong with them."""
    found: dict[int, str] = {}
    for name, what in ((columns.text, "text"), (columns.text_pair, "second text")):
        for i, value in enumerate(table.columns[name] if name is not None else ()):
            problem = _problem(value)
            if problem is not None:
                found.setdefault(i, problem.replace("text", what, 1))
    return found


def read_rows(table: Table, columns: Columns) -> RawRows:
    """The chosen columns, with every value checked.

    Raises:
        DataError: a column is missing, there are no rows, a text is empty or no string, or a label is
            missing; the message gives row numbers, the first data row being 1.
    """
    for name in (columns.text, columns.text_pair, columns.label):
        if name is not None and name not in table.columns:
            raise DataError(f"{table.where} has no column {name!r}; it has {listed(list(table.columns))}.")
    if not len(table.columns[columns.text]):
        raise DataError(f"{table.where} has no rows.")
    for name in (columns.text, columns.text_pair):
        problems = [_problem(value) for value in (() if name is None else table.columns[name])]
        for what in (NO_TEXT, _NOT_TEXT, _NOT_UNICODE):
            refuse_rows(table, str(name), what, [i for i, problem in enumerate(problems) if problem == what])
    texts = list(table.columns[columns.text])
    pairs = None if columns.text_pair is None else list(table.columns[columns.text_pair])
    labels = [None] * len(texts) if columns.label is None else read_labels(table, columns.label)
    return RawRows(table.where, texts, pairs, labels)


def read_labels(table: Table, column: str) -> list[Any]:
    """The labels of a column: text or numbers; where the format itself names the classes, their names.

    Raises:
        DataError: a label is missing, hidden, or neither text nor a number.
    """
    labels = list(table.columns[column])
    refuse_rows(table, column, _NO_LABEL, [i for i, value in enumerate(labels) if _missing(value)])
    odd = [i for i, value in enumerate(labels) if not isinstance(value, str | int | float | bool)]
    refuse_rows(table, column, "a label that is neither text nor a number", odd)
    bad = [i for i, value in enumerate(labels) if isinstance(value, str) and not is_unicode(value)]
    refuse_rows(table, column, "a label that is not Unicode", bad)
    names = table.label_names.get(column)
    if names is not None:
        wrong = [i for i, v in enumerate(labels) if not isinstance(v, int) or isinstance(v, bool)]
        refuse_rows(table, column, f"no number of one of its {len(names)} classes", wrong)
        hidden = [i for i, value in enumerate(labels) if not 0 <= value < len(names)]
        refuse_rows(table, column, "no label (hidden, stored as -1)", hidden)
        labels = [names[value] for value in labels]
    return labels


def peek_labels(tables: Mapping[str, Table], named: ColumnNames) -> list[Any]:
    """The labels of all tables as `read_labels` gives them, for a kind that claims them; none where the
    column is not known or holds anything else."""
    try:
        column = choose_columns(tables["train"], named.text, named.text_pair, named.label).label
        whole = [t for t in tables.values() if column in t.columns]
        return [label for table in whole for label in read_labels(table, str(column))]
    except DataError:
        return []


def numbers_of(parts: Sequence[RawRows]) -> list[list[float]] | None:
    """All labels as numbers, by part; `None` where one is not a number.

    Raises:
        DataError: a number is not finite.
    """
    found = [[number_of(value) for value in part.labels] for part in parts]
    if any(number is None for numbers in found for number in numbers):
        return None
    whole = [[number for number in numbers if number is not None] for numbers in found]
    for part, numbers in zip(parts, whole, strict=True):
        bad = [i for i, number in enumerate(numbers) if not math.isfinite(number)]
        if bad:
            raise DataError(f"{part.where}: labels that are not finite in {_rows(bad)}.")
    return whole


def number_of(value: Any) -> float | None:
    """A label as a number, `None` where it is none; truth values and `1_0` are not."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    try:
        return float(value)
    except OverflowError:  # a whole number of more digits than a real one can have
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):  # a list and a mapping are none either
        return None


def same_numbers(names: Collection[str], known: Sequence[str]) -> dict[str, str]:
    """Of names that are numbers what numbers of the same value are called among `known`: `1` and `1.0`. None
    where not all of these are numbers of different values."""
    values: dict[str, Decimal | None] = {}
    for name in (*known, *names):
        number = number_of(name)
        values[name] = Decimal(name.strip()) if number is not None and math.isfinite(number) else None
    called = {values[name]: name for name in known}
    if None in called or len(called) < len(known):
        return {}
    return {name: called[values[name]] for name in names if values[name] in called}


def _missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _problem(value: Any) -> str | None:
    """Why a value cannot be taken as a text."""
    if _missing(value):
        return NO_TEXT
    if not isinstance(value, str):
        return _NOT_TEXT
    return None if is_unicode(value) else _NOT_UNICODE


def is_unicode(text: str) -> bool:
    """Whether a text can be written to a file; halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_rows(table: Table, column: str, what: str, rows: Sequence[int]) -> None:
    """Refuse rows whose value in a column is `what` it should not be; nothing where there are none.

    Raises:
        DataError: there are some; the message gives the numbers of the first five and how many more.
    """
    if rows:
        out = " with --drop-empty (drop_empty=True)" if what in (NO_TEXT, _NO_LABEL) else ""
        way = f"Mend them, or leave them out{out}."
        raise DataError(f"{table.where}: column {column!r} has {what} in {_rows(rows)}. {way}")


def _rows(indices: Sequence[int]) -> str:
    shown = ", ".join(str(i + 1) for i in indices[:5])
    more = f" and {len(indices) - 5:,} more" if len(indices) > 5 else ""
    return f"{'row' if len(indices) == 1 else 'rows'} {shown}{more}"


def listed(names: Sequence[str]) -> str:
    """Up to twelve names for an error."""
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "no columns"

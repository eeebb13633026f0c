"""Rows with several labels: lists of them in one column, or one column of 0 and 1 for each.

A list holds texts or whole numbers, and may be empty. Several columns are named in one: `--label
"toxic,insult"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.kinds.listed_names import PRINTED, is_printed, name_of, problem_of_names
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    choose_columns,
    choose_texts,
    listed,
    number_of,
    read_rows,
    refuse_rows,
)

__all__ = ["is_label_lists", "label_columns", "read_label_lists"]

_LABELS = ("labels", "label", "tags", "categories", "genres", "topics", "emotions", "classes", "targets")
_APART = ","  # between the names of label columns
_LOOKED_AT = 100  # rows
_MOST = 10_000  # labels of a row

_NO_LIST = "something that is no list of labels"
_LONG = f"more than {_MOST:,} labels"
_NO_MARK = "something other than 0 and 1"


def several(table: Table, label: str | None) -> list[str]:
    """The columns that a label names where it names several; none where it is one column."""
    if label is None or label in table.columns or _APART not in label:
        return []
    return [name.strip() for name in label.split(_APART)]


def label_columns(table: Table, named: ColumnNames) -> Columns:
    """The columns of texts, and that of lists of labels, or the names of several columns with commas between
    them.

    Raises:
        DataError: a named column does not exist or is named twice, or no column has an obvious name.
    """
    marks = several(table, named.label)
    if not marks:
        lower = {name.lower(): name for name in reversed(list(table.columns))}
        known = next((lower[name] for name in _LABELS if name in lower), None)
        return choose_columns(table, named.text, named.text_pair, named.label or known)
    check_named(table, (("--text", named.text), ("--text-pair", named.text_pair)))
    check_named(table, [("--label", name) for name in marks])
    if len(set(marks)) < max(2, len(marks)):
        raise DataError(f"{table.where}: --label names a column twice, or one alone: {named.label!r}.")
    rest = {name: values for name, values in table.columns.items() if name not in marks}
    texts = choose_texts(replace(table, columns=rest), named.text, named.text_pair, pair=None)
    return replace(texts, label=named.label)


def is_label_lists(table: Table, named: ColumnNames) -> bool:
    """Whether most of the first rows have a text and a list of labels, be it printed as text, or several
    label columns are named."""
    try:
        chosen = label_columns(table, named)
    except DataError:
        return False
    if several(table, chosen.label):
        return True
    texts = table.columns[chosen.text][:_LOOKED_AT]
    labels = table.columns[str(chosen.label)][:_LOOKED_AT]
    pairs = zip(texts, labels, strict=True)
    marks = _are_marks(table, str(chosen.label))
    fits = (isinstance(t, str) and (marks or _problem(v, None) in (None, PRINTED)) for t, v in pairs)
    return 2 * sum(fits) > len(texts)


def read_label_lists(table: Table, columns: Columns) -> RawRows:
    """The rows of a table, with lists of the names of their labels (`None` without a column of them); columns
    of 0 and 1 are fields too.

    Raises:
        DataError: there are no rows, or some have no text, or no labels; the message gives their numbers.
    """
    raw = read_rows(table, replace(columns, label=None))
    if columns.label is None:
        return raw
    marks = several(table, columns.label)
    if marks:
        missing = [name for name in marks if name not in table.columns]
        if missing:
            raise DataError(
                f"{table.where} has no column {missing[0]!r}; it has {listed(list(table.columns))}."
            )
        values = {name: _marks(table, name) for name in marks}
        rows = [[name for name in marks if values[name][i]] for i in range(len(table))]
        return replace(raw, labels=rows, fields=values)
    if columns.label not in table.columns:
        raise DataError(
            f"{table.where} has no column {columns.label!r}; it has {listed(list(table.columns))}."
        )
    return replace(raw, labels=_lists(table, columns.label))


def _marks(table: Table, column: str) -> list[int]:
    numbers = [
        int(v) if isinstance(v, bool) else None if v is None else _number(v) for v in table.columns[column]
    ]
    refuse_rows(table, column, _NO_MARK, [i for i, number in enumerate(numbers) if number not in (0, 1)])
    return [int(number or 0) for number in numbers]


def _number(value: Any) -> float | None:
    try:
        return number_of(value)
    except TypeError:  # a list, a mapping
        return None


def _lists(table: Table, column: str) -> list[list[str]]:
    names = table.label_names.get(column)
    if _are_marks(table, column):
        raise DataError(
            f"{table.where}: column {column!r} has lists of 0 and 1, a mark for each label. Give lists of "
            "the labels' names, or a column of 0 and 1 for each label (--label 'toxic,insult')."
        )
    found = [_problem(value, names) for value in table.columns[column]]
    for what in dict.fromkeys(problem for problem in found if problem is not None):
        refuse_rows(table, column, what, [i for i, problem in enumerate(found) if problem == what])
    return [[name_of(v, names) for v in value] for value in table.columns[column]]


def _are_marks(table: Table, column: str) -> bool:
    """Whether a column has a mark for each label in the place of labels: lists of one length of 0 and 1, of
    which some hold one of them twice, as lists of labels do not."""
    values = table.columns[column]
    if column in table.label_names or not all(isinstance(v, list | tuple | np.ndarray) for v in values):
        return False
    lists = [list(value) for value in values]
    marks = all(
        isinstance(m, bool | int | float | np.number | np.bool_) and m in (0, 1) for own in lists for m in own
    )
    return marks and len({*map(len, lists)}) == 1 and any(len({*own}) < len(own) for own in lists)


def _problem(value: Any, names: Sequence[str] | None) -> str | None:
    if not isinstance(value, list | tuple | np.ndarray):
        return PRINTED if is_printed(value) else _NO_LIST
    if len(value) > _MOST:
        return _LONG
    return problem_of_names(list(value), names, "label")

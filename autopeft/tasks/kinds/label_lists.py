"""Lists of labels: names in a list, which stand for names that the format notes, and rows with several
labels.

A list holds texts or whole numbers, and may be empty; or there is one column of 0 and 1 for each label.
Several columns are named in one: `--label "toxic,insult"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.kinds.class_metrics import (
    shares_in_words,
)
from autopeft.tasks.kinds.schema import Schema, check_there, refuse_problems
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    choose_columns,
    is_unicode,
    listed,
    number_of,
    obvious_column,
    read_rows,
    refuse_rows,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName


__all__ = ["PRINTED", "LabelsSchema", "is_printed", "name_of", "problem_of_names"]

_CLAIM = 0.6
_PLENTY = 50  # labels that any data may have
_MOST_NAMES = 5_000  # labels: a row holds a number for each

PRINTED = "a list that was printed as text (save lists as JSON lines or Parquet)"
"""What is wrong with a text that `is_printed`."""
_QUOTES, _NUMBERS = "'\"", set("-0123456789, \n")
_LARGEST = 10**18


def problem_of_names(values: Sequence[Any], names: Sequence[str] | None, one: str) -> str | None:
    """What is wrong with a list of names, in a few words; `None` where nothing is.

    Args:
        names: all that there are, in order of their numbers; `None` where they are not known.
        one: what a name is called: a `label`, a `tag`.
    """
    numbers = [_whole(value) for value in values]
    pairs = list(zip(numbers, values, strict=True))
    if not all(n is not None or (isinstance(v, str) and v.strip()) for n, v in pairs):
        return f"a {one} that is neither text nor a whole number"
    if not all(is_unicode(value) for value in values if isinstance(value, str)):
        return f"a {one} that is not Unicode"
    if names is None or all(v in names if n is None else 0 <= n < len(names) for n, v in pairs):
        return None
    return f"a {one} that is none of its {len(names)} {one}s"


def is_printed(value: Any) -> bool:
    """Whether a value is a text as lists of texts or whole numbers are printed (`['a', 'b']`). Pandas writes
    them so to a CSV."""
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    inside = text[1:-1].strip()
    quoted = len(inside) > 1 and inside[0] in _QUOTES and inside[-1] in _QUOTES
    return quoted or _NUMBERS.issuperset(inside)


def name_of(value: Any, names: Sequence[str] | None) -> str:
    """The name that a value without a problem stands for."""
    number = _whole(value)
    if number is None:
        return str(value).strip()
    return str(number) if names is None else names[number]


def _whole(value: Any) -> int | None:
    """A value as a whole number; `None` where it is none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        return None
    return int(value) if abs(int(value)) < _LARGEST else None


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


class LabelsSchema(Schema):
    """Labels are rows of 0 and 1, one for each label."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims tables of which most of the first rows have a text and a list of labels, be it printed as
        text, and several label columns where `--label` names them."""
        table = tables["train"]
        try:
            chosen = self.columns(table, named)
        except DataError:
            return 0.0
        if several(table, chosen.label):
            return _CLAIM
        texts = table.columns[chosen.text][:_LOOKED_AT]
        labels = table.columns[str(chosen.label)][:_LOOKED_AT]
        pairs = zip(texts, labels, strict=True)
        marks = _are_marks(table, str(chosen.label))
        fits = (isinstance(t, str) and (marks or _problem(v, None) in (None, PRINTED)) for t, v in pairs)
        return _CLAIM if 2 * sum(fits) > len(texts) else 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """The columns of texts, and that of lists of labels, or the names of several columns with commas
        between them.

        Raises:
            DataError: a named column does not exist or is named twice, or no column has an obvious name.
        """
        marks = several(table, named.label)
        if not marks:
            known = obvious_column(table, _LABELS)
            return choose_columns(table, named.text, named.text_pair, named.label or known)
        check_named(table, (("--text", named.text), ("--text-pair", named.text_pair)))
        check_named(table, [("--label", name) for name in marks])
        if len(set(marks)) < max(2, len(marks)):
            raise DataError(f"{table.where}: --label names a column twice, or one alone: {named.label!r}.")
        rest = {name: values for name, values in table.columns.items() if name not in marks}
        texts = choose_columns(replace(table, columns=rest), named.text, named.text_pair, labelled=False)
        return replace(texts, label=named.label)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows of a table, with lists of the names of their labels (`None` without a column of them);
        columns of 0 and 1 are fields too.

        Raises:
            DataError: there are no rows, or some have no text, or no labels; the message gives their numbers.
        """
        raw = read_rows(table, replace(columns, label=None))
        if columns.label is None:
            return raw
        marks = several(table, columns.label)
        if marks:
            values: dict[str, list[int]] = {}
            for name in marks:
                check_there(table, name)
                column = table.columns[name]
                numbers = [int(v) if isinstance(v, bool) else number_of(v) for v in column]
                refuse_rows(table, name, _NO_MARK, [i for i, n in enumerate(numbers) if n not in (0, 1)])
                values[name] = [int(number or 0) for number in numbers]
            rows = [[name for name in marks if values[name][i]] for i in range(len(table))]
            return replace(raw, labels=rows, fields=values)
        check_there(table, columns.label)
        if _are_marks(table, columns.label):
            raise DataError(
                f"{table.where}: column {columns.label!r} has lists of 0 and 1, a mark for each label. Give "
                "lists of the labels' names, or a column of 0 and 1 for each label (--label 'toxic,insult')."
            )
        lists, names = table.columns[columns.label], table.label_names.get(columns.label)
        refuse_problems(table, columns.label, {i: _problem(v, names) for i, v in enumerate(lists)})
        return replace(raw, labels=[[name_of(v, names) for v in value] for value in lists])

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
            where, rows = parts[0].where, sum(len(part.labels) for part in parts)
            if len(names) < 2:
                raise DataError(f"{where}: its rows have {len(names)} different labels; two are needed.")
            if len(names) > min(_MOST_NAMES, max(_PLENTY, rows // 2)):
                raise DataError(
                    f"{where}: {len(names):,} different labels in {rows:,} rows are too many to be learnt. "
                    "Name the label column with --label."
                )
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

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `Schema.remarks`; labels that no row of a split has."""
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


def _marked(row: Sequence[str], index: Mapping[str, int]) -> tuple[int, ...]:
    """0 and 1 for each label, in index order."""
    marks = [0] * len(index)
    for name in row:
        marks[index[name]] = 1
    return tuple(marks)


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

"""Questions whose answers are spans of a text, in SQuAD's layouts.

A row has a `question`, a `context` and `answers`: `{"text": […], "answer_start": […]}`, as the hub has them,
or a list of `{"text": …, "answer_start": …}`. Several answers are each acceptable, and without any the
context does not answer the question (SQuAD 2). An answer begins at a letter of the context, counted from 0.
The original nested JSON becomes such rows when it is read (see `autopeft.tasks.files`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.copies import Input
from autopeft.tasks.kinds.schema import Schema, check_there, refuse_problems
from autopeft.tasks.kinds.spans import (
    Answers,
)
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    needed_column,
    read_rows,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split


__all__ = ["NULL", "QuestionSchema"]

_CLAIM = 0.98

NULL = "null"
"""The field of rows that are asked about: whether no answer may be given."""
_QUESTIONS, _CONTEXTS, _ANSWERS = ("question", "query"), ("context", "passage"), ("answers", "answer")
_TEXT, _START = "text", "answer_start"
_LOOKED_AT = 100  # rows
_SHOWN = 60  # letters

_NO_LABEL = "no label"
_NO_ANSWERS = "something that is no answers ({'text': […], 'answer_start': […]})"
_NO_TEXT = "an answer that is empty or not text"
_NOT_UNICODE = "text that is not Unicode"
_NO_START = "an answer_start that is no whole number from 0"


class _Listed(NamedTuple):
    """What a row has as answers: texts and the letters at which they begin."""

    texts: list[Any]
    starts: list[Any]


class QuestionSchema(Schema):
    """Labels are `Answers`."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims tables of questions, contexts and, in most of the first rows, lists of answers with the
        letters at which they begin."""
        table = tables["train"]
        try:
            chosen = self.columns(table, named)
        except DataError:
            return 0.0
        first = [_listed(value) for value in table.columns[str(chosen.label)][:_LOOKED_AT]]
        there = sum(found is not None for found in first)
        return _CLAIM if 2 * there > len(first) else 0.0

    def columns(self, table: Table, named: ColumnNames, *, labelled: bool = True) -> Columns:
        """The column of questions as `text`, that of contexts as `text_pair` and that of answers as `label`.

        Args:
            labelled: whether the answers are needed.

        Raises:
            DataError: a named column does not exist, or no column has an obvious name.
        """
        options = ("--text", "--text-pair") if labelled else ("--text-column", "--text-pair-column")
        check_named(table, ((options[0], named.text), (options[1], named.text_pair)))
        text = named.text or needed_column(table, _QUESTIONS, "question", options[0])
        context = named.text_pair or needed_column(table, _CONTEXTS, "context", options[1])
        label = None
        if labelled:
            check_named(table, (("--label", named.label),))
            label = named.label or needed_column(table, _ANSWERS, "answers", "--label")
        used = [name for name in (text, context, label) if name is not None]
        if len(set(used)) < len(used):
            raise DataError(f"One column of {table.where} cannot be two things at once: {', '.join(used)}.")
        return Columns(text, context, label)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows of a table: questions as texts, contexts as pairs, and as labels lists of `[start, text]`,
        each once (`None` without a column of them), without white space at the answers' ends.

        Raises:
            DataError: there are no rows, some have no question, context or answers, or an answer is not what
                stands in the context where it is said to begin; the message names the row.
        """
        plain = read_rows(table, Columns(columns.text, columns.text_pair, None))
        if columns.label is None:
            return plain
        check_there(table, columns.label)
        values = table.columns[columns.label]
        problems: dict[int, str | None] = {}
        for i, value in enumerate(values):
            own = _listed(value)
            if value is None or (isinstance(value, float) and np.isnan(value)):
                problems[i] = _NO_LABEL
            elif own is None:
                problems[i] = _NO_ANSWERS
            elif not all(isinstance(text, str) and text.strip() for text in own.texts):
                problems[i] = _NO_TEXT
            elif not all(map(is_unicode, own.texts)):
                problems[i] = _NOT_UNICODE
            elif any(_start(start) is None for start in own.starts):
                problems[i] = _NO_START
        refuse_problems(table, columns.label, problems)
        assert plain.pairs is not None
        labels = []
        for row, (value, context) in enumerate(zip(values, plain.pairs, strict=True), start=1):
            found = _listed(value)
            assert found is not None
            spans: dict[tuple[int, str], None] = {}
            for text, said in zip(found.texts, found.starts, strict=True):
                start = _start(said)
                assert start is not None
                there = context[start : start + len(text)]
                if there != text:
                    stands = (
                        f"where {_short(there)} stands" if there else f"which has {len(context):,} letters"
                    )
                    raise DataError(
                        f"{table.where}: row {row} says that the answer {_short(text)} begins at letter "
                        f"{start:,} of its context, {stands}; answer_start counts letters from 0."
                    )
                spans[start + len(text) - len(text.lstrip()), text.strip()] = None
            labels.append([[start, text] for start, text in spans])
        return RawRows(plain.where, plain.texts, plain.pairs, labels)

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """The rows of each part as `Answers`; there are no classes. None may be given where a row of the
        first part has none.

        Raises:
            DataError: no row of the first part has an answer.
        """
        first = parts[0].labels
        if not any(first):
            raise DataError(f"{parts[0].where}: no row has an answer, so there is nothing to learn.")
        null = not all(first)
        return (), [
            [
                Answers([(start, text) for start, text in label], context, null=null)
                for label, context in zip(part.labels, part.pairs or (), strict=True)
            ]
            for part in parts
        ]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """Whether the row has an answer."""
        return [int(bool(answers)) for answers in labels]

    def alike(self, rows: Split) -> list[Input]:
        """The contexts: questions on one text stay together."""
        return [(text,) for text in rows.pairs or rows.texts]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Raises `DataError` where no row with an answer is left to train on."""
        if not any(train.labels):
            raise DataError(f"{name}: no row of train has an answer after splitting; more rows are needed.")

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """Shortest, longest and mean answer in words, and how many rows have none."""
        words = [len(answers[0][1].split()) for answers in labels if answers]
        if not words:
            return ""
        told = f"answers of {min(words):,} to {max(words):,} words, mean {np.mean(words):,.1f}"
        without = len(labels) - len(words)
        return told + (f"; {without:,} ({100 * without / len(labels):.1f} %) have none" if without else "")

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of questions and contexts."""
        return self.columns(table, named, labelled=False)

    def read_texts(self, table: Table, columns: Columns, use: Mapping[str, Any]) -> RawRows:
        """See `Schema.read_texts`: whether no answer may be given is as it was in training."""
        raw = self.read(table, columns)
        return replace(raw, fields={NULL: [use.get(NULL) is True] * len(raw.texts)})

    def as_trained(self, rows: Split, use: Mapping[str, Any]) -> Split:
        """See `Schema.as_trained`: the same, whatever these rows have."""
        return replace(rows, fields={**rows.fields, NULL: [use.get(NULL) is True] * len(rows)})


def _listed(value: Any) -> _Listed | None:
    """Answers in either layout; `None` where it is none."""
    if isinstance(value, Mapping):
        texts, starts = value.get(_TEXT), value.get(_START)
        if not isinstance(texts, list | tuple | np.ndarray) or not isinstance(
            starts, list | tuple | np.ndarray
        ):
            return None
        return _Listed(list(texts), list(starts)) if len(texts) == len(starts) else None
    if not isinstance(value, list | tuple | np.ndarray) or not all(isinstance(v, Mapping) for v in value):
        return None
    if not all({_TEXT, _START} <= v.keys() for v in value):
        return None
    return _Listed([v[_TEXT] for v in value], [v[_START] for v in value])


def _start(value: Any) -> int | None:
    """A whole number from 0; tables with gaps have such as floats."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        return None
    return int(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")

"""Questions with several choices of which one is right: their layouts, and their tokens.

Layouts: `question`, `choices` and `answer`, as a list of texts (MMLU) or with a label to each text (ARC,
OpenBookQA: `{"text": […], "label": […]}`); `ctx`, `endings` and `label` (HellaSwag); `sent1`, `sent2`,
`ending0` … and `label` (SWAG); `goal`, `sol1`, `sol2` and `label` (PIQA). A column `context`, `passage`,
`article` or `premise` (COPA) stands before the question.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.errors import DataError
from autopeft.tasks.copies import Input, normal_form
from autopeft.tasks.kinds.conversation_tokens import EncodedConversations
from autopeft.tasks.kinds.label_lists import PRINTED, is_printed
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.table import (
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    listed,
    needed_column,
    obvious_column,
    refuse_rows,
)
from autopeft.tasks.tokens import BESIDE, EncodedSplit, Indices

if TYPE_CHECKING:
    from autopeft.tasks.split import Split


__all__ = ["CHOICES", "CHOICE_OF", "LETTERS", "PASSAGES", "ChoiceSchema", "EncodedChoices", "choices_of"]

_CLAIM = 0.95

CHOICES = "choices"
"""The field of a split that holds the texts of each row's choices."""
PASSAGES = "passages"
"""The field that holds what stands before each question, where rows have such a column."""
CHOICE_OF = f"{BESIDE}choice_of"
"""Key of a batch (see `EncodedChoices.collate`)."""
LETTERS = ascii_uppercase
"""What choices are called; a row has as many as there are letters at most."""

_QUESTIONS = ("question", "question_stem", "ctx", "query", "sent1", "goal", "premise", "prompt")
_CONTEXTS = ("context", "passage", "article", "premise")
_LISTS = ("choices", "options", "endings")
_ANSWERS = ("answer", "answerkey", "label", "labels", "answer_idx", "gold", "target")
_NUMBERED = re.compile(r"(ending|choice|option|sol|answer)_?(\d{1,2})", re.IGNORECASE)
_LARGE = 1_000_000
_LOOKED_AT = 100  # rows
_SECOND = ("sent1", "sent2")  # SWAG: the choices end the second sentence

_NO_LIST = f"something that is no list of 2 to {len(LETTERS)} texts"
_EMPTY = "an empty choice or one that is not text"
_NAMES = "labels that do not name each of its texts"
_NOT_UNICODE = "text that is not Unicode"
_NO_QUESTION = "no text"
_NO_ANSWER = "no index, letter or text of one of the row's choices"


class ChoiceSchema(Schema):
    """Labels are indices of the right choices."""

    asked_file = "path/to/questions.jsonl"

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims tables with columns of questions, choices and answers, of which some choices can be read, or
        are printed as text."""
        table = tables["train"]
        try:
            self.columns(table, named)
        except DataError:
            return 0.0
        rows = _choices(table)[:_LOOKED_AT]
        return _CLAIM if any(_texts_of(row) is not None or is_printed(row) for row in rows) else 0.0

    def columns(self, table: Table, named: ColumnNames, *, labelled: bool = True) -> Columns:
        """The column of questions as `text` and that of the right choices as `label`; those of the choices
        have names of their own (see the top of this file).

        Args:
            labelled: whether the right choices are needed.

        Raises:
            DataError: a named column does not exist, there are second texts, or no column has an obvious
            name.
        """
        option = "--text" if labelled else "--text-column"
        check_named(table, ((option, named.text), ("--label", named.label)))
        if named.text_pair is not None:
            raise DataError(
                f"A question has no second text, but --text-pair names {named.text_pair!r}; a column called "
                f"{', '.join(_CONTEXTS)} stands before it."
            )
        if not _choice_names(table):
            raise DataError(
                f"{table.where} has no columns of choices ({', '.join(_LISTS)}, or such as ending0, "
                f"ending1); it has {listed(list(table.columns))}."
            )
        text = named.text or needed_column(table, _QUESTIONS, "question", option)
        label = named.label
        if labelled:
            label = label or needed_column(table, _ANSWERS, "right choice", "--label")
        if text == label:
            raise DataError(f"One column of {table.where} cannot be question and answer at once: {text!r}.")
        return Columns(text, None, label if labelled else None)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows of a table: questions as texts, indices of the right choices as labels (`None` without a
        column of them), and the fields `choices` and, with a column of them, `passages`.

        A label is what the row's own choices are called where they have names, of which numbers may come as
        text or as numbers. Else it is an index from 0, a letter, or, where that is so in all rows, the text
        of the choice.

        Raises:
            DataError: there are no rows, or some are no questions with choices; the message gives their
            numbers.
        """
        if not len(table):
            raise DataError(f"{table.where} has no rows.")
        found, names = self.unanswerable(table, columns), _choice_names(table)
        for what in dict.fromkeys(found.values()):
            column = columns.text if what == _NO_QUESTION else names[0]
            refuse_rows(table, column, what, [i for i, problem in found.items() if problem == what])
        values = _choices(table)
        choices = [[text.strip() for text in _texts_of(value) or ()] for value in values]
        fields: dict[str, list[Any]] = {CHOICES: choices}

        labels: list[Any] = [None] * len(table)
        if columns.label is not None:
            answers = table.columns[columns.label]
            texts = all(isinstance(a, str) and a.strip() in c for a, c in zip(answers, choices, strict=True))
            for i, (answer, own, value) in enumerate(zip(answers, choices, values, strict=True)):
                called = _parted(value)[1]
                called = None if called is None else [str(name).strip() for name in called]
                labels[i] = _index(answer, own, called, texts=texts)
            wrong = [i for i, label in enumerate(labels) if label is None]
            refuse_rows(table, columns.label, _NO_ANSWER, wrong)

        # What stands before the questions, or what all choices of SWAG begin with, which ends them.
        questions = [text.strip() for text in table.columns[columns.text]]
        second, context = _beside(table, columns)
        if second is not None:
            begun = [b if isinstance(b, str) and is_unicode(b) else "" for b in table.columns[second]]
            questions = [f"{q} {b}".strip() for q, b in zip(questions, begun, strict=True)]
        if context is not None:
            passages = [
                c.strip() if isinstance(c, str) and is_unicode(c) else "" for c in table.columns[context]
            ]
            questions = [f"{c}\n{q}" if c else q for q, c in zip(questions, passages, strict=True)]
            fields[PASSAGES] = passages
        return RawRows(table.where, questions, None, labels, fields)

    def further_columns(self, table: Table, columns: Columns) -> Sequence[str]:
        """The columns of choices, and that of what stands before the questions or begins the choices."""
        return [*_choice_names(table), *(name for name in _beside(table, columns) if name is not None)]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The place of the right choice."""
        return [int(label) for label in labels]

    def alike(self, rows: Split) -> list[Input]:
        """What stands before the questions, where something does: those on one text stay together. Else a
        question with its right choice: many rows may ask the same of other choices."""
        passages = rows.fields.get(PASSAGES, [""] * len(rows))
        found = zip(passages, rows.texts, rows.fields[CHOICES], rows.labels, strict=True)
        return [(passage or f"{text}\n{own[int(label)]}",) for passage, text, own, label in found]

    def inputs_of(self, rows: Split) -> list[Input]:
        """Questions with their choices in any order."""
        found = zip(rows.texts, rows.fields[CHOICES], strict=True)
        return [(text, *sorted(own, key=normal_form)) for text, own in found]

    def answers_of(self, rows: Split) -> list[str]:
        """The text of the right choice."""
        return [own[int(label)] for own, label in zip(rows.fields[CHOICES], rows.labels, strict=True)]

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How often each place is the right one."""
        counts = sorted(Counter(int(label) for label in labels).items())
        shares = (f"{LETTERS[place]} {100 * n / len(labels):.1f} %" for place, n in counts)
        return f"right are {', '.join(shares)}" if counts else ""

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The columns of questions and choices."""
        return self.columns(table, named, labelled=False)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that are no question with choices what is wrong with them; answers are not looked
        at."""
        found: dict[int, str] = {}
        for i, (question, value) in enumerate(zip(table.columns[columns.text], _choices(table), strict=True)):
            texts, names = _texts_of(value), _parted(value)[1]
            if not isinstance(question, str) or not question.strip():
                found[i] = _NO_QUESTION
            elif texts is None:
                found[i] = PRINTED if is_printed(value) else _NO_LIST
            elif not all(isinstance(text, str) and text.strip() for text in texts):
                found[i] = _EMPTY
            elif names is not None and (
                not isinstance(names, list | tuple | np.ndarray)
                or len(names) != len(texts)
                or not all(
                    isinstance(n, str) or (isinstance(n, int | np.integer) and abs(n) < _LARGE) for n in names
                )
            ):
                found[i] = _NAMES
            elif not all(map(is_unicode, (question, *texts))):
                found[i] = _NOT_UNICODE
        return found


def _choice_names(table: Table) -> list[str]:
    """One column of lists, or one for each choice in order; none where there are no choices."""
    one = obvious_column(table, _LISTS)
    if one is not None:
        return [one]
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in table.columns:
        found = _NUMBERED.fullmatch(name)
        if found:
            groups.setdefault(found[1].lower(), []).append((int(found[2]), name))
    most = max(groups.values(), key=len, default=[])
    return [name for _, name in sorted(most)] if len(most) > 1 else []


# Rows
# ------------------------------------------------------------------------------------------------------


def _choices(table: Table) -> list[Any]:
    """What each row has as choices. Of numbered columns the last may be empty, where rows have fewer."""
    names = _choice_names(table)
    if len(names) == 1:
        return list(table.columns[names[0]])
    rows = [list(row) for row in zip(*(table.columns[name] for name in names), strict=True)]
    for row in rows:
        while row and (row[-1] is None or row[-1] == ""):
            row.pop()
    return rows


def _parted(value: Any) -> tuple[Any, Any]:
    """Texts and labels of choices in any layout; the labels are `None` where there are none."""
    if isinstance(value, Mapping):
        return value.get("text"), value.get("label")
    if isinstance(value, list | tuple | np.ndarray) and all(isinstance(v, Mapping) for v in value):
        return [v.get("text") for v in value], [v.get("label") for v in value]
    return value, None


def _texts_of(value: Any) -> list[Any] | None:
    texts, _ = _parted(value)
    if not isinstance(texts, list | tuple | np.ndarray) or not 2 <= len(texts) <= len(LETTERS):
        return None
    return list(texts)


def _beside(table: Table, columns: Columns) -> tuple[str | None, str | None]:
    """The column of what all choices of SWAG begin with, or that of what stands before the questions."""
    if columns.text.lower() == _SECOND[0] and (second := obvious_column(table, _SECOND[1:])) is not None:
        return second, None
    context = obvious_column(table, _CONTEXTS)
    return None, None if context == columns.text else context


def _index(answer: Any, choices: list[str], names: list[str] | None, *, texts: bool) -> int | None:
    if isinstance(answer, float | np.floating) and float(answer).is_integer():
        answer = int(answer)
    if isinstance(answer, int | np.integer) and not isinstance(answer, bool):
        if names is None or not all(name.isdecimal() for name in names):
            return int(answer) if 0 <= answer < len(choices) else None
        answer = str(int(answer))  # a number that choices are called by is no place
    if not isinstance(answer, str):
        return None
    word = answer.strip()
    known = names or (choices if texts else list(LETTERS[: len(choices)]))
    if word in known:
        return known.index(word) if known.count(word) == 1 else None
    if names is None and word.upper() in known:
        return known.index(word.upper())
    if names is None and re.fullmatch(r"\d{1,2}", word, re.ASCII) and int(word) < len(choices):
        return int(word)
    return None


# Tokens
# ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EncodedChoices(EncodedSplit):
    """Tokens of questions, a sequence for each choice: those of row i are `starts[i]` to `starts[i + 1]`.

    Attributes:
        sequences: tokens of all choices of all rows.
        starts: (rows + 1,) int64.
        sizes: bytes of each choice in UTF-8, (sequences,) int64.

    `labels` are the indices of the right choices, (rows,) int64; `ids` and `offsets` are of the sequences.
    """

    sequences: EncodedConversations
    starts: Indices
    sizes: Indices

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def labels_fingerprint(self) -> str:
        """See `EncodedSplit.labels_fingerprint`: of the right choices and of what they are in the rows."""
        digest = hashlib.sha256(super().labels_fingerprint.encode())
        digest.update(self.sequences.labels_fingerprint.encode())
        for array in (self.starts, self.sizes):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def content(self, row: int) -> bytes:
        """See `EncodedSplit.content`: the sequences of all choices."""
        return b"|".join(map(super().content, range(self.starts[row], self.starts[row + 1])))

    @property
    def lengths(self) -> Indices:
        """Tokens of the longest sequence of each row, (rows,)."""
        return np.maximum.reduceat(self.sequences.lengths, self.starts[:-1])

    def batch_indices(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        among: Indices | None = None,
    ) -> list[Indices]:
        """See `EncodedSplit.batch_indices`. Without `shuffle` a batch has as many rows as have together
        `batch_size` sequences, and at least one."""
        found = super().batch_indices(
            batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, among=among
        )
        if shuffle:
            return found
        counts, batches = np.diff(self.starts), list[list[int]]()
        held = batch_size
        for row in self.order().tolist():
            if held + counts[row] > batch_size:
                batches.append([])
                held = 0
            batches[-1].append(row)
            held += int(counts[row])
        return [np.asarray(rows, dtype=np.int64) for rows in batches]

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """The choices of the given rows, row after row, as `EncodedConversations.collate` has sequences;
        `CHOICE_OF` (sequences, 2) int64 are the place of its row in the batch and its bytes."""
        chosen = np.asarray(rows, dtype=np.int64)
        flat = self._of(chosen)
        place = np.repeat(np.arange(len(chosen)), np.diff(self.starts)[chosen])
        batch = self.sequences.collate(flat, device=device)
        told = torch.from_numpy(np.stack([place, self.sizes[flat]], axis=1))
        return {**batch, CHOICE_OF: told.to(device, non_blocking=True)}

    def take(self, rows: Indices) -> EncodedChoices:
        """See `EncodedSplit.take`."""
        chosen = np.asarray(rows, dtype=np.int64)
        flat, counts = self._of(chosen), np.diff(self.starts)[chosen]
        labels = None if self.labels is None else self.labels[chosen]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return choices_of(self.sequences.take(flat), starts, self.sizes[flat], labels)

    def _of(self, rows: Indices) -> Indices:
        """The sequences of rows, one row after the other."""
        parts = [np.arange(self.starts[row], self.starts[row + 1]) for row in rows]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def choices_of(
    sequences: EncodedConversations, starts: Indices, sizes: Indices, labels: NDArray[Any] | None
) -> EncodedChoices:
    """A split of these sequences."""
    return EncodedChoices(
        ids=sequences.ids,
        offsets=sequences.offsets,
        types=sequences.types,
        labels=labels,
        kind=sequences.kind,
        pad_id=sequences.pad_id,
        pad_type=sequences.pad_type,
        max_length=sequences.max_length,
        sequences=sequences,
        starts=starts,
        sizes=sizes,
    )

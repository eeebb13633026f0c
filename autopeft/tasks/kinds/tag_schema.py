"""Rows of words with tags, in the layouts of the hub.

A row has a list of words (`tokens`, `words`) and a list of as many tags (`ner_tags`, `tags`, `labels`, …),
texts or whole numbers; a CSV, whose cells are texts, has both with white space between them. The names of
numbered tags are those that the format notes (features of `datasets`, a README's `class_label`), else the
numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.errors import DataError
from autopeft.tasks.kinds.class_metrics import shares_in_words
from autopeft.tasks.kinds.label_lists import PRINTED, is_printed, name_of, problem_of_names
from autopeft.tasks.kinds.schema import Schema, check_there, nameless, obvious_column, refuse_problems
from autopeft.tasks.kinds.tags import (
    OUTSIDE,
    Tags,
)
from autopeft.tasks.table import (
    NO_TEXT,
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    listed,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName


__all__ = ["MOST_WORDS", "WORDS", "TagSchema", "parted", "tagged"]

_CLAIM = 0.97
_RARE = 10  # words of train with a tag, below which hardly anything is learnt of it

WORDS = "words"
"""The field of a split that holds the words of each row."""
MOST_WORDS = 100_000
"""Of a row: a thousand times what models read."""

_WORDS = ("tokens", "words")
_TAGS = (
    "ner_tags",
    "tags",
    "ner",
    "labels",
    "pos_tags",
    "upos",
    "xpos",
    "pos",
    "chunk_tags",
    "chunks",
    "label",
)
_TEXTS = ("text", "sentence", "content")  # of rows that are asked about, parted at white space
_LOOKED_AT = 100  # rows
_PLENTY = 50  # tags that any data may have

_NO_LIST = "something that is no list of words"
_NO_WORD = "an empty word, or one that is not text"
_LONG = f"more than {MOST_WORDS:,} words"
_NOT_UNICODE = "text that is not Unicode"
_NO_TAGS = "something that is no list of tags"
_OTHER_LENGTH = "another number of tags than there are words"


class TagSchema(Schema):
    """Labels are `Tags`, one for each word."""

    def claim(self, tables: Mapping[str, Table], named: ColumnNames) -> float:
        """Claims tables with words and as many tags in most of the first rows. Texts count as words where
        their column is called so."""
        table = tables["train"]
        try:
            chosen = self.columns(table, named)
        except DataError:
            return 0.0
        words, tags = (table.columns[str(name)][:_LOOKED_AT] for name in (chosen.text, chosen.label))
        called = chosen.text.lower() in _WORDS
        fits = [
            (called or not isinstance(w, str)) and bool(parted(w)) and len(parted(w)) == len(parted(t))
            for w, t in zip(words, tags, strict=True)
        ]
        return _CLAIM if 2 * sum(fits) > len(fits) else 0.0

    def columns(self, table: Table, named: ColumnNames) -> Columns:
        """The column of words as `text` and that of tags as `label`.

        Raises:
            DataError: a named column does not exist, there are second texts, or no column has an obvious
            name.
        """
        check_named(table, (("--text", named.text), ("--label", named.label)))
        if named.text_pair is not None:
            raise DataError(
                f"Words with tags have no second text, but --text-pair names {named.text_pair!r}."
            )
        words = named.text or obvious_column(table, _WORDS)
        tags = named.label or obvious_column(table, _TAGS)
        for what, name, option in (("words", words, "--text"), ("tags", tags, "--label")):
            if name is None:
                raise nameless(table, what, option)
        if words == tags:
            raise DataError(f"One column of {table.where} cannot be words and tags at once: {words!r}.")
        return Columns(str(words), None, tags)

    def read(self, table: Table, columns: Columns) -> RawRows:
        """The rows of a table: their words, joined by spaces, as texts, lists of the tags' names as labels
        (`None` without a column of them), and the field `words`.

        Raises:
            DataError: there are no rows, or some have no words, or tags that do not fit; the message gives
                their numbers.
        """
        if not len(table):
            raise DataError(f"{table.where} has no rows.")
        refuse_problems(table, columns.text, self.unanswerable(table, columns))
        words = [parted(value) for value in table.columns[columns.text]]
        labels: list[Any] = [None] * len(table)
        if columns.label is not None:
            check_there(table, columns.label)
            labels = _read_tags(table, columns.label, words)
        return RawRows(table.where, [" ".join(row) for row in words], None, labels, {WORDS: words})

    def encode_labels(
        self, parts: Sequence[RawRows], order: Sequence[str] = ()
    ) -> tuple[tuple[str, ...], list[list[Any]]]:
        """The names of the tags, and the rows of each part as `Tags`.

        The first is the one that counts as outside: `O`, or else the one that most words of the first part
        have. The others are in the given `order`, else sorted, by number where all are whole numbers.

        Raises:
            DataError: there is one tag alone, nearly every word has a tag of its own, or a part has a tag
                that the first one lacks.
        """
        present = {tag for part in parts for row in part.labels for tag in row}
        counts = Counter(chain.from_iterable(parts[0].labels))
        if order and present <= set(order):
            names = list(order)
        else:
            names = sorted(present, key=(lambda n: (int(n), n)) if all(map(_is_number, present)) else None)
            _check_tags(parts, present)
        for part in parts[1:]:
            if unknown := sorted(
                {tag for row in part.labels for tag in row} - set(names if order else counts)
            ):
                raise DataError(
                    f"{part.where} has tags that {parts[0].where} lacks, so no model can learn them: "
                    f"{listed(unknown)}."
                )
        first = OUTSIDE if OUTSIDE in names else max(names, key=lambda name: counts[name])
        classes = (first, *(name for name in names if name != first))
        index = {name: i for i, name in enumerate(classes)}
        return tuple(classes), [
            [Tags([index[tag] for tag in row], classes) for row in part.labels] for part in parts
        ]

    def strata(self, labels: Sequence[Any]) -> list[int]:
        """The rarest tag of the row."""
        counts = Counter(tag for row in labels for tag in row)
        return [min(row, key=lambda tag: (counts[tag], tag)) for row in labels]

    def check(self, name: str, train: Split, names: Sequence[str]) -> None:
        """Raises `DataError` where only one tag is left to train on."""
        if len({tag for row in train.labels for tag in row}) < 2:
            raise DataError(f"{name}: the words of train have one tag after splitting; more rows are needed.")

    def describe_rows(self, labels: Sequence[Any], names: Sequence[str]) -> str:
        """How many words there are, and how often each tag is."""
        tags = [tag for row in labels for tag in row]
        return f"{len(tags):,} words: {_shares(tags, names)}" if tags else ""

    def remarks(
        self, splits: Mapping[SplitName, Split], names: Sequence[str], metric: str, *, weighted: bool = False
    ) -> list[str]:
        """See `Schema.remarks`; tags that hardly any word of train has."""
        counts = Counter(tag for row in splits["train"].labels for tag in row)
        rare = [name for i, name in enumerate(names) if counts[i] < _RARE]
        found = super().remarks(splits, names, metric, weighted=weighted)
        if rare:
            shown = ", ".join(map(repr, rare[:6])) + (f" and {len(rare) - 6} more" if len(rare) > 6 else "")
            found.append(f"Fewer than {_RARE} words of train have the tag {shown}.")
        return found

    def relabel(self, labels: Sequence[Any], names: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        places = [list(wanted).index(name) for name in names]
        return [Tags([places[tag] for tag in row], tuple(wanted)) for row in labels]

    def text_columns(self, table: Table, named: ColumnNames, *, pair: bool | None = None) -> Columns:
        """The column of words, or of texts that are parted at white space, of rows that are to be tagged.

        Raises:
            DataError: the named column does not exist, there are second texts, or no column has an obvious
            name.
        """
        check_named(table, (("--text-column", named.text),))
        if named.text_pair is not None:
            raise DataError("Words to be tagged have no second text; leave out text_pair_column.")
        words = named.text or obvious_column(table, (*_WORDS, *_TEXTS))
        if words is None:
            raise nameless(table, "words", "--text-column")
        return Columns(words, None, None)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that have no words what is wrong with them; tags are not looked at."""
        found = ((i, _problem(value)) for i, value in enumerate(table.columns[columns.text]))
        return {i: problem for i, problem in found if problem is not None}


def _shares(tags: Sequence[int], names: Sequence[str]) -> str:
    counts = Counter(tags)
    return shares_in_words([counts[i] for i in range(len(names))], names, len(tags))


# Columns
# ------------------------------------------------------------------------------------------------------


# Rows
# ------------------------------------------------------------------------------------------------------


def parted(value: Any) -> list[Any]:
    """A list of words or tags; none where it is no list."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else []
    return list(value) if isinstance(value, list | tuple) else []


def _problem(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return NO_TEXT
    if not isinstance(value, str | list | tuple | np.ndarray):
        return _NO_LIST
    words = parted(value)
    if not words:
        return NO_TEXT
    if len(words) > MOST_WORDS:
        return _LONG
    if not all(isinstance(word, str) and word.strip() for word in words):
        return _NO_WORD
    return None if all(map(is_unicode, words)) else _NOT_UNICODE


def _read_tags(table: Table, column: str, words: Sequence[Sequence[str]]) -> list[list[str]]:
    names = table.label_names.get(column)
    rows = list(zip(table.columns[column], words, strict=True))
    found = ((i, _tag_problem(value, len(own), names)) for i, (value, own) in enumerate(rows))
    refuse_problems(table, column, {i: problem for i, problem in found if problem is not None})
    return [[name_of(tag, names) for tag in _tags(value)] for value, _ in rows]


def _tag_problem(value: Any, words: int, names: Sequence[str] | None) -> str | None:
    if not isinstance(value, str | list | tuple | np.ndarray):
        return _NO_TAGS
    if is_printed(value):  # white space would part it into tags such as `['O',`
        return PRINTED
    tags = _tags(value)
    return problem_of_names(tags, names, "tag") if len(tags) == words else _OTHER_LENGTH


def _tags(value: Any) -> list[Any]:
    """A list of tags; numbers that are whole are so, which a table with gaps makes floats of."""
    return [
        int(tag) if isinstance(tag, float | np.floating) and float(tag).is_integer() else tag
        for tag in parted(value)
    ]


def tagged(words: Sequence[str], tags: Sequence[str], outside: str) -> str:
    """Words with their tags, for a reader: `Anna/B-PER lives in Oslo/B-LOC`."""
    plain = (" ".join(word.split()) for word in words)
    return " ".join(w if t == outside else f"{w}/{t}" for w, t in zip(plain, tags, strict=True))


def _is_number(name: str) -> bool:
    return name.isascii() and name.removeprefix("-").isdigit() and len(name) < 20


def _check_tags(parts: Sequence[RawRows], present: set[str]) -> None:
    where = parts[0].where
    if len(present) < 2:
        raise DataError(f"{where}: all words have the tag {next(iter(present))!r}; two tags are needed.")
    words = sum(len(row) for part in parts for row in part.labels)
    if len(present) > max(_PLENTY, words // 2):
        raise DataError(
            f"{where}: {len(present):,} different tags of {words:,} words are no tags. Name their column "
            "with --label."
        )

"""Tags of words: the rows in the layouts of the hub, their labels, the entities that these spell, and the
metrics of both.

A row has a list of words (`tokens`, `words`) and a list of as many tags (`ner_tags`, `tags`, `labels`, …),
texts or whole numbers; a CSV, whose cells are texts, has both with white space between them. The names of
numbered tags are those that the format notes (features of `datasets`, a README's `class_label`), else the
numbers.

Tags such as `B-PER`, `I-PER`, `O` spell entities: `B-` begins one, `I-` goes on with it, `O` is outside of
all. They are read as the CoNLL-2000 script `conlleval` and the package seqeval (in its default mode) read
them, which also takes IOB1, IOBES and BILOU: an `I-` behind another type, or behind the end of an entity,
begins one. seqeval has had no release since 2020 and comes as source alone; its rule is written here again,
and `tests/fixtures/entities` compares the two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import DataError
from autopeft.tasks.kinds.class_metrics import shares_in_words
from autopeft.tasks.kinds.label_lists import PRINTED, is_printed, name_of, problem_of_names
from autopeft.tasks.kinds.metric import Metric, ScoredRows, f1_of_counts, f1_variance, share_variance
from autopeft.tasks.kinds.schema import Schema, check_there, refuse_problems
from autopeft.tasks.table import (
    NO_TEXT,
    ColumnNames,
    Columns,
    RawRows,
    Table,
    check_named,
    is_unicode,
    listed,
    needed_column,
)

if TYPE_CHECKING:
    from autopeft.tasks.split import Split, SplitName

__all__ = [
    "ENTITY_F1",
    "MOST_WORDS",
    "OUTSIDE",
    "TAG_ACCURACY",
    "TAG_F1",
    "UNSEEN",
    "WORDS",
    "TagSchema",
    "Tags",
    "entities",
    "entity_types",
    "outside_of",
    "parted",
    "spell_entities",
    "tagged",
]

OUTSIDE = "O"
"""The tag of words that belong to no entity."""
UNSEEN = -1
"""In the place of a word's tag: the model saw no token of it."""

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

_PART = re.compile(r"([BIESLU])(?:-(.+))?", re.DOTALL)
_SAME = {"L": "E", "U": "S"}  # BILOU's words for what IOBES has
Numbers = NDArray[Any]


class Tags(tuple[int, ...]):
    """The tags of a row's words, as indices, and what these are called: a metric has to know which of them
    begin an entity.

    Attributes:
        names: of all tags of the task, in index order. The first is the one that counts as outside, unless
            another is called `O`.
    """

    names: tuple[str, ...]

    def __new__(cls, indices: Sequence[int], names: tuple[str, ...]) -> Tags:
        made = super().__new__(cls, indices)
        made.names = names
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return Tags, (tuple(self), self.names)

    def at(self, places: Sequence[int]) -> Tags:
        """The tags of some of the words."""
        return Tags([self[i] for i in places], self.names)


def outside_of(names: Sequence[str]) -> int:
    """The index of the tag that marks nothing: `O`, else the first, which most words have."""
    return names.index(OUTSIDE) if OUTSIDE in names else 0


def spell_entities(names: Sequence[str]) -> bool:
    """Whether tags spell entities: all but `O` are `B`, `I`, `E`, `S`, `L` or `U`, mostly with a type behind
    a hyphen, and where they have none, one of them begins an entity."""
    parts = [_PART.fullmatch(name) for name in names if name != OUTSIDE]
    if not parts or any(part is None for part in parts):
        return False
    typed = all(part is not None and part[2] for part in parts)
    return typed or any(part is not None and part[1] in "BSU" for part in parts)


def entity_types(names: Sequence[str]) -> tuple[str, ...]:
    """The types of the entities that tags spell, sorted; `entity` for tags without types."""
    return _tables(tuple(names))[2]


@lru_cache(maxsize=64)
def _tables(names: tuple[str, ...]) -> tuple[Numbers, Numbers, tuple[str, ...]]:
    """Of each tag its letter and the index of its type (-1 for `O`), and the types."""
    parts = [None if name == OUTSIDE else _PART.fullmatch(name) for name in names]
    called = [None if part is None else part[2] or "entity" for part in parts]
    types = tuple(sorted({name for name in called if name is not None}))
    letters = [OUTSIDE if part is None else _SAME.get(part[1], part[1]) for part in parts]
    indices = [-1 if name is None else types.index(name) for name in called]
    return np.asarray(letters), np.asarray(indices, dtype=np.int64), types


def entities(tags: Numbers, rows: Numbers, names: Sequence[str]) -> Numbers:
    """The entities that the tags of words spell: (entities, 3) of the first word, the last word and the type.

    Args:
        tags: indices of the tags of all words, row after row, (words,).
        rows: the row of each word, (words,); no entity goes on in another row.
    """
    if not len(tags):
        return np.empty((0, 3), dtype=np.int64)
    letters, types, _ = _tables(tuple(names))
    letter, kind = letters[tags], types[tags]
    inside = kind >= 0
    before = np.concatenate([[OUTSIDE], letter[:-1]])
    first = np.concatenate([[True], rows[1:] != rows[:-1]])
    other = first | np.concatenate([[True], kind[1:] != kind[:-1]])
    begins = inside & (other | np.isin(letter, ("B", "S")) | np.isin(before, (OUTSIDE, "E", "S")))
    # An entity ends where the next one begins, a word is outside, or the row ends.
    stops = np.flatnonzero(begins | ~inside | first)
    starts = np.flatnonzero(begins)
    ends = np.append(stops, len(tags))[np.searchsorted(stops, starts, side="right")] - 1
    return np.stack([starts, ends, kind[starts]], axis=1)


# Rows
# ------------------------------------------------------------------------------------------------------


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
        words = named.text or needed_column(table, _WORDS, "words", "--text")
        tags = named.label or needed_column(table, _TAGS, "tags", "--label")
        if words == tags:
            raise DataError(f"One column of {table.where} cannot be words and tags at once: {words!r}.")
        return Columns(words, None, tags)

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
            rows = list(zip(table.columns[columns.label], words, strict=True))
            names = table.label_names.get(columns.label)
            problems: dict[int, str | None] = {}
            for i, (value, own) in enumerate(rows):
                if not isinstance(value, str | list | tuple | np.ndarray):
                    problems[i] = _NO_TAGS
                elif is_printed(value):  # white space would part it into tags such as `['O',`
                    problems[i] = PRINTED
                elif len(tags := _tags(value)) != len(own):
                    problems[i] = _OTHER_LENGTH
                else:
                    problems[i] = problem_of_names(tags, names, "tag")
            refuse_problems(table, columns.label, problems)
            labels = [[name_of(tag, names) for tag in _tags(value)] for value, _ in rows]
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
            whole = all(n.isascii() and n.removeprefix("-").isdigit() and len(n) < 20 for n in present)
            names = sorted(present, key=(lambda name: (int(name), name)) if whole else None)
            where, words = parts[0].where, sum(len(row) for part in parts for row in part.labels)
            if len(present) < 2:
                raise DataError(f"{where}: all words have the tag {names[0]!r}; two tags are needed.")
            if len(present) > max(_PLENTY, words // 2):
                raise DataError(
                    f"{where}: {len(present):,} different tags of {words:,} words are no tags. Name their "
                    "column with --label."
                )
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
        counts = Counter(tags)
        shares = shares_in_words([counts[i] for i in range(len(names))], names, len(tags))
        return f"{len(tags):,} words: {shares}" if tags else ""

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
        words = named.text or needed_column(table, (*_WORDS, *_TEXTS), "words", "--text-column")
        return Columns(words, None, None)

    def unanswerable(self, table: Table, columns: Columns) -> dict[int, str]:
        """Of the rows that have no words what is wrong with them; tags are not looked at."""
        found: dict[int, str] = {}
        for i, value in enumerate(table.columns[columns.text]):
            words = parted(value)
            if value is None or (isinstance(value, float) and np.isnan(value)):
                found[i] = NO_TEXT
            elif not isinstance(value, str | list | tuple | np.ndarray):
                found[i] = _NO_LIST
            elif not words:
                found[i] = NO_TEXT
            elif len(words) > MOST_WORDS:
                found[i] = _LONG
            elif not all(isinstance(word, str) and word.strip() for word in words):
                found[i] = _NO_WORD
            elif not all(map(is_unicode, words)):
                found[i] = _NOT_UNICODE
        return found


def parted(value: Any) -> list[Any]:
    """A list of words or tags; none where it is no list."""
    if isinstance(value, str):
        return value.split()
    if isinstance(value, np.ndarray):
        return list(value) if value.ndim else []
    return list(value) if isinstance(value, list | tuple) else []


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


# Metrics
# ------------------------------------------------------------------------------------------------------


def _flat(predictions: Numbers, labels: Numbers) -> tuple[Numbers, Numbers, Numbers, tuple[str, ...]]:
    """Predicted and true tags of all words, the row of each, and the names of the tags."""
    names = labels[0].names
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    found, truth = (np.concatenate([np.asarray(r, dtype=np.int64) for r in p]) for p in (predictions, labels))
    return found, truth, rows, names


def _entity_counts(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row the entities that are right, those that were predicted, and those that there are."""
    found, truth, rows, names = _flat(predictions, labels)
    said, there = (entities(tags, rows, names) for tags in (found, truth))
    width = max(len(found), len(names)) + 1
    right = np.isin(said @ [width**2, width, 1], there @ [width**2, width, 1])
    return _by_row(rows, len(labels), said[right, 0], said[:, 0], there[:, 0])


def _tag_counts(predictions: Numbers, labels: Numbers) -> Numbers:
    """The same of words that are not outside, each counted by itself."""
    found, truth, rows, names = _flat(predictions, labels)
    none = outside_of(names)
    said, there = found != none, truth != none
    right = said & (found == truth)
    return _by_row(rows, len(labels), *(np.flatnonzero(mask) for mask in (right, said, there)))


def _accuracy_counts(predictions: Numbers, labels: Numbers) -> Numbers:
    """Of each row the words whose tag is right, and all of them."""
    found, truth, rows, _ = _flat(predictions, labels)
    return _by_row(rows, len(labels), np.flatnonzero(found == truth), np.arange(len(truth)))


def _by_row(rows: Numbers, count: int, *places: Numbers) -> Numbers:
    """How many of the words at `places` each row has, (rows, one column for each)."""
    return np.stack([np.bincount(rows[p], minlength=count) for p in places], axis=1).astype(np.float64)


def _share(sums: Numbers) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _metric(
    name: str,
    summary: str,
    count: Callable[[Numbers, Numbers], Numbers],
    of_sums: Callable[[Numbers], float],
    variance: Callable[[float, int], float],
) -> Metric:
    def variance_on(score: float, rows: ScoredRows) -> float:
        labels, there = rows.labels, rows.rows  # one in each row where labels are not at hand
        if labels is not None and len(labels):
            there = int(count(labels, labels)[:, -1].sum())
        return variance(score, there)

    return Metric(
        name, 0, 1, summary,
        lambda found, truth: of_sums(count(found, truth).sum(axis=0)),
        variance_on,
        by_row=count, of_sums=of_sums,
    )  # fmt: skip


ENTITY_F1 = _metric(
    "entity_f1",
    "micro F1 of entities, right where first word, last word and type are: `B-PER I-PER` (as seqeval)",
    _entity_counts,
    f1_of_counts,
    f1_variance,
)
TAG_F1 = _metric(
    "tag_f1",
    "micro F1 of the tags of single words, without `O`, or else without the tag that most words have",
    _tag_counts,
    f1_of_counts,
    f1_variance,
)
TAG_ACCURACY = _metric(
    "tag_accuracy", "share of words whose tag is right", _accuracy_counts, _share, share_variance
)
"""Their variances, which count where no pair of models was scored on the same rows, take what is counted as
independent; in paired intervals whole rows are left out (see `pseudo_values`)."""

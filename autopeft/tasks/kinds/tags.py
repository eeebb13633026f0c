"""Tags of words: the labels of a row, the entities that they spell, and the metrics of both.

Tags such as `B-PER`, `I-PER`, `O` spell entities: `B-` begins one, `I-` goes on with it, `O` is outside of
all. They are read as the CoNLL-2000 script `conlleval` and the package seqeval (in its default mode) read
them, which also takes IOB1, IOBES and BILOU: an `I-` behind another type, or behind the end of an entity,
begins one. seqeval has had no release since 2020 and comes as source alone; its rule is written here again,
and `tests/fixtures/entities` compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.kinds.class_metrics import variance_of_f1, variance_of_share
from autopeft.tasks.kinds.metric import Metric, ScoredRows

__all__ = [
    "ENTITY_F1",
    "OUTSIDE",
    "TAG_ACCURACY",
    "TAG_F1",
    "UNSEEN",
    "Tags",
    "entities",
    "entity_types",
    "outside_of",
    "ragged",
    "spell_entities",
]

OUTSIDE = "O"
"""The tag of words that belong to no entity."""
UNSEEN = -1
"""In the place of a word's tag: the model saw no token of it."""

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


def ragged(rows: Sequence[Any]) -> NDArray[Any]:
    """Rows of different lengths as an array of objects, (rows,)."""
    found = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        found[i] = row
    return found


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


def _f1(sums: Numbers) -> float:
    """Of right ones, predicted ones and true ones; 0 where there are none."""
    right, said, there = sums
    return float(2 * right / (said + there)) if said + there else 0.0


def _share(sums: Numbers) -> float:
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _there(count: Callable[[Numbers, Numbers], Numbers], rows: ScoredRows) -> int:
    """How many of what a metric counts there are in the rows; one in each where labels are not at hand."""
    if rows.labels is None or not len(rows.labels):
        return rows.rows
    return int(count(rows.labels, rows.labels)[:, -1].sum())


def _metric(
    name: str,
    summary: str,
    count: Callable[[Numbers, Numbers], Numbers],
    of_sums: Callable[[Numbers], float],
    variance: Callable[[float, int], float],
) -> Metric:
    return Metric(
        name, 0, 1, summary,
        lambda found, truth: of_sums(count(found, truth).sum(axis=0)),
        lambda score, rows: variance(score, _there(count, rows)),
        by_row=count, of_sums=of_sums,
    )  # fmt: skip


ENTITY_F1 = _metric(
    "entity_f1",
    "micro F1 of entities, right where first word, last word and type are: `B-PER I-PER` (as seqeval)",
    _entity_counts,
    _f1,
    variance_of_f1,
)
TAG_F1 = _metric(
    "tag_f1",
    "micro F1 of the tags of single words, without `O`, or else without the tag that most words have",
    _tag_counts,
    _f1,
    variance_of_f1,
)
TAG_ACCURACY = _metric(
    "tag_accuracy", "share of words whose tag is right", _accuracy_counts, _share, variance_of_share
)
"""Their variances, which count where no pair of models was scored on the same rows, take what is counted as
independent; in paired intervals whole rows are left out (see `pseudo_values`)."""

"""Rows of other kinds of task, made of the questions of `trec` and their classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from autopeft.tasks import Task

__all__ = ["MADE", "made_of"]

Row = Mapping[str, object]

_SHORT = 8  # words
# What the classes are called in answers.
_WORDS = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "thing", "HUM": "person",
          "LOC": "place", "NUM": "number"}  # fmt: skip


def _with_length(name: str, text: str) -> Row:
    """A question, and its length in tens of letters."""
    return {"text": text, "label": len(text) / 10}


def _with_labels(name: str, text: str) -> Row:
    """A question, its class, and whether it is short."""
    return {"text": text, "label": [name, *["short"] * (len(text.split()) < _SHORT)]}


def _with_choices(name: str, text: str) -> Row:
    """A question, and what it may ask for, in an order that follows from its text."""
    first, words = len(text) % len(_WORDS), list(_WORDS.values())
    choices = words[first:] + words[:first]
    question = f"What does this question ask for? {text}"
    return {"question": question, "choices": choices, "answer": choices.index(_WORDS[name])}


MADE: Mapping[str, Callable[[str, str], Row]] = {
    "regression": _with_length,
    "multi_label": _with_labels,
    "multiple_choice": _with_choices,
}
"""By kind of task what makes its row of a class and a text."""


def made_of(trec: Task, kind: str) -> Iterator[Row]:
    """Rows of `kind`, of each question of each split of `trec`."""
    for split in trec.splits.values():
        for label, text in zip(split.labels, split.texts, strict=True):
            yield MADE[kind](trec.labels[label], text)

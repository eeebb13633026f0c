"""Rows of a task: one split, how many rows are wanted, and the hash that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["SPLIT_NAMES", "Rows", "Split", "SplitName", "rows_sha256"]

SplitName = Literal["train", "select", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "select", "test")


@dataclass(frozen=True)
class Rows:
    """How many rows of each split are wanted at most; `None` means all."""

    train: int | None = None
    select: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        texts: a text for each row.
        pairs: second texts, where there are any.
        labels: a value for each row, as the task's kind encodes them: class indices, real numbers, …
        fields: further columns that a kind of task takes, by name.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Sequence[Any]
    fields: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Split:
        """The rows at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        pairs = None if self.pairs is None else [self.pairs[i] for i in chosen]
        fields = {name: [column[i] for i in chosen] for name, column in self.fields.items()}
        return Split([self.texts[i] for i in chosen], pairs, [self.labels[i] for i in chosen], fields)

    def joined(self, other: Split) -> Split:
        """The rows of both, those of `other` last."""
        pairs = None if self.pairs is None else [*self.pairs, *(other.pairs or ())]
        fields = {name: [*column, *other.fields[name]] for name, column in self.fields.items()}
        return Split([*self.texts, *other.texts], pairs, [*self.labels, *other.labels], fields)


def rows_sha256(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: Sequence[object],
    fields: Mapping[str, Sequence[Any]] | None = None,
) -> str:
    """Hex sha256 over rows as JSON lines `[text, pair, label]`, UTF-8; the same on every platform.

    With `fields`, each line ends with a list of them, sorted by name; images stand there by their digests.
    """
    digest = hashlib.sha256()
    seconds: Iterable[str | None] = [None] * len(texts) if pairs is None else pairs
    named = sorted((fields or {}).items())
    for index, row in enumerate(zip(texts, seconds, labels, strict=True)):
        line: list[Any] = [*row, *([[[name, column[index]] for name, column in named]] if named else [])]
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":"), default=str)
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()

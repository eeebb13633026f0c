"""What a task is: three splits of labelled text, a metric, and where the data come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autopeft.errors import TaskError
from autopeft.tasks.splits import stratified_order

__all__ = ["SPLIT_NAMES", "Kind", "Labels", "Rows", "Source", "Split", "SplitName", "Task", "rows_sha256"]

Kind = Literal["classification", "regression"]
Labels = list[int] | list[float]
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
    """Rows of one split: texts, second texts where there are any, and class indices or real labels."""

    texts: list[str]
    pairs: list[str] | None
    labels: Labels

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Split:
        """The rows at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        labels: Any = [self.labels[i] for i in chosen]
        pairs = None if self.pairs is None else [self.pairs[i] for i in chosen]
        return Split([self.texts[i] for i in chosen], pairs, labels)


@dataclass(frozen=True)
class Source:
    """Where the data come from.

    Attributes:
        origin: the `hub`, a `package` of the pinned table, or the user's own `file` or folder.
        name: repository, packaged task or path.
        sha256: of all rows as they were read, before splitting (see `rows_sha256`).
        licence: the data's terms, where they are known.
        stand_in_for: the task that was asked for, where this one stands in for it.
        notice: the line that said so.
    """

    origin: Literal["hub", "package", "file"]
    name: str
    sha256: str
    licence: str | None = None
    stand_in_for: str | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Task:
    """A task that a model can be trained, selected and tested on.

    `labels` are the class names in index order (empty for regression). `class_weights` has one positive
    factor per class, mean over the training rows 1 when balanced.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    splits: Mapping[SplitName, Split]
    metric: str
    class_weights: list[float] | None
    source: Source

    @property
    def num_labels(self) -> int:
        """Outputs of a head for this task: the number of classes, or 1."""
        return len(self.labels) if self.kind == "classification" else 1

    def describe(self) -> dict[str, Any]:
        """What a run records about its data, as JSON-able values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "labels": list(self.labels),
            "metric": self.metric,
            "class_weights": self.class_weights,
            "rows": {name: len(self.splits[name]) for name in SPLIT_NAMES},
            "source": dict(vars(self.source)),
        }

    def subset(
        self,
        train: int | None = None,
        select: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> Task:
        """The same task with at most so many rows in each split, stratified by label.

        Smaller subsets lie inside larger ones of the same seed; the rows keep their order. Class weights
        stay those of the whole task.

        Raises:
            TaskError: a number of rows is not positive.
        """
        splits: dict[SplitName, Split] = {}
        sizes: dict[SplitName, int | None] = {"train": train, "select": select, "test": test}
        for name, size in sizes.items():
            split = self.splits[name]
            if size is not None and size < 1:
                raise TaskError(f"A split needs at least one row, but got {name}={size}.")
            if size is not None and size < len(split):
                order = stratified_order(split.texts, split.pairs, split.labels, self.kind, seed)
                split = split.take(sorted(order[:size]))
            splits[name] = split
        return replace(self, splits=splits)


def rows_sha256(texts: Sequence[str], pairs: Sequence[str] | None, labels: Sequence[object]) -> str:
    """Hex sha256 over rows as JSON lines `[text, pair, label]`, UTF-8; the same on every platform."""
    digest = hashlib.sha256()
    seconds: Iterable[str | None] = [None] * len(texts) if pairs is None else pairs
    for row in zip(texts, seconds, labels, strict=True):
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()

"""What a task is: three splits of labelled rows, a metric, and where the data come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import TaskError
from autopeft.tasks.copies import text_ids
from autopeft.tasks.kinds import Loss, Metric, TaskKind, get_kind
from autopeft.tasks.split import SPLIT_NAMES, Rows, Split, SplitName, rows_sha256
from autopeft.tasks.splits import stratified_order

__all__ = ["SPLIT_NAMES", "Reading", "Rows", "Source", "Split", "SplitName", "Task", "rows_sha256"]


@dataclass(frozen=True)
class Source:
    """Where the data come from.

    Attributes:
        origin: the `hub`, a `package` of the pinned table, the user's own `file` or folder, or `memory`: rows
            that were handed over as objects. Nobody can load these again from their name: another process
            has to be handed the same rows, which `sha256` tells. `several`: tasks that were named together.
        name: repository, packaged task, path, or what the object was.
        sha256: of all rows as they were read, before splitting (see `rows_sha256`).
        licence: the data's terms, where they are known.
        stand_in_for: the task that was asked for, where this one stands in for it.
        notice: the line that said so.
    """

    origin: Literal["hub", "package", "file", "memory", "several"]
    name: str
    sha256: str
    licence: str | None = None
    stand_in_for: str | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Reading:
    """How the rows of a task were taken from a table.

    Attributes:
        columns: by what they hold (`text`, `text_pair`, `label`, further ones of the kind), their names.
        ignored: names of the columns that were not used.
        dropped: rows without a text or a label that were left out, by the file or split that they came in.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task that a model can be trained, selected and tested on.

    `kind` is a name of `autopeft.tasks.kinds`. `labels` are the class names in index order (empty for kinds
    without classes). `class_weights` has one positive factor per class, mean over the training rows 1 when
    balanced. `own_metric` is the metric itself where it is a function of the user's.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    splits: Mapping[SplitName, Split]
    metric: str
    class_weights: list[float] | None
    source: Source
    reading: Reading = Reading()
    own_metric: Metric | None = None

    @property
    def task_kind(self) -> TaskKind:
        """The kind itself, which knows all that depends on it.

        Raises:
            TaskError: no such kind is registered here.
        """
        return get_kind(self.kind)

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the tasks of a set, none of a task by itself."""
        return tuple(member.name for member in getattr(self.task_kind.schema, "members", ()))

    @property
    def num_labels(self) -> int:
        """Outputs of a head for this task: the number of classes, or 1."""
        return self.task_kind.head.num_labels(self.labels)

    def text_ids(self, name: SplitName) -> NDArray[np.int64]:
        """Which of the different texts of a split each of its rows has, (rows,); copies have the same (see
        `autopeft.tasks.copies`)."""
        return text_ids(self.task_kind.schema.inputs_of(self.splits[name]))

    def loss(self) -> Loss:
        """What is minimised."""
        return self.task_kind.scorer.loss(self.labels, self.class_weights)

    def describe(self) -> dict[str, Any]:
        """What a run records about its data, as JSON-able values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "labels": list(self.labels),
            "metric": self.metric,
            "class_weights": self.class_weights,
            "rows": {name: len(self.splits[name]) for name in SPLIT_NAMES},
            "texts": {name: len(np.unique(self.text_ids(name))) for name in SPLIT_NAMES},
            "pairs": self.splits["train"].pairs is not None,
            "columns": dict(self.reading.columns),
            "ignored": list(self.reading.ignored),
            "dropped": dict(self.reading.dropped),
            "source": dict(vars(self.source)),
        }

    def cut(self, train: int | None, select: int | None, test: int | None, seed: int) -> Task:
        """A subset that is to be trained on.

        Raises:
            TaskError: see `subset`.
            DataError: of the rows of train that are left nothing can be learnt.
        """
        found = self.subset(train, select, test, seed)
        if len(found.splits["train"]) < len(self.splits["train"]):
            self.task_kind.schema.check(self.name, found.splits["train"], self.labels)
        return found

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
                order = stratified_order(
                    split.texts, split.pairs, self.task_kind.schema.strata(split.labels), seed
                )
                split = split.take(sorted(order[:size]))
            splits[name] = split
        return replace(self, splits=splits)

"""The rows that a score was measured on."""

from __future__ import annotations

import math

from autopeft.tasks.scored import ScoredSplit
from autopeft.tasks.task import Source, Split, Task


def test_a_split_of_a_task() -> None:
    split = Split(["a", "b", "c", "d"], None, [2, 0, 2, 2])
    task = Task(
        "t", "classification", ("x", "y", "z"), {"train": split, "select": split, "test": split.take([0, 1])},
        "macro_f1", None, Source("file", "t", "0"),
    )  # fmt: skip
    assert ScoredSplit.of(task) == ScoredSplit("macro_f1", 2, (1, 0, 1))
    assert ScoredSplit.of(task, "select") == ScoredSplit("macro_f1", 4, (1, 0, 3))
    assert math.isfinite(ScoredSplit.of(task).variance(0.0))
    numbers = Split(["a", "b"], None, [0.5, 1.5])
    graded = Task(
        "t", "regression", (), {"train": numbers, "select": numbers, "test": numbers}, "pearson", None,
        Source("file", "t", "0"),
    )  # fmt: skip
    assert ScoredSplit.of(graded) == ScoredSplit("pearson", 2)

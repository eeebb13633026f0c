"""The rows that a score was measured on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

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


def _rows(texts: list[str], labels: list[int], metric: str = "accuracy") -> ScoredSplit:
    split = Split(texts, None, labels)
    task = Task(
        "t", "classification", ("x", "y"), {"train": split, "select": split, "test": split}, metric, None,
        Source("file", "t", "0"),
    )  # fmt: skip
    return ScoredSplit.of(task)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "macro_f1", "matthews"])
@pytest.mark.parametrize("score", [0.8, 1.0])
def test_copies_add_nothing_to_what_is_known(metric: str, score: float) -> None:
    texts, labels = [f"text {i}" for i in range(40)], [i % 2 for i in range(40)]
    plain = _rows(texts, labels, metric)
    copied = _rows(texts + [f"{t.upper()} ." for t in texts] + texts, labels * 3, metric)
    assert (plain.texts, copied.texts, copied.rows) == (40, 40, 120)
    assert plain.sizes == ()
    assert copied.variance(score) == plain.variance(score)
    assert copied.least_variance == plain.least_variance


def test_texts_of_unequal_sizes_tell_less() -> None:
    """Ten texts of eleven copies and ninety of one: as much as 200² / (10 · 121 + 90) rows."""
    texts = [f"text {i}" for i in range(100)] + [f"text {i}" for i in range(10) for _ in range(10)]
    found = _rows(texts, [int(text.split()[1]) % 2 for text in texts])
    assert found.texts == 100
    assert found.classes == (50, 50)
    plain = ScoredSplit("accuracy", 100, (50, 50))
    assert found.variance(0.7) == pytest.approx(plain.variance(0.7) * 100 * (10 * 121 + 90) / 200**2)
    assert replace(found, sizes=()).variance(0.7) < found.variance(0.7) / 3

"""Rows that are handed over as objects are the same task as the same rows in a file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

from autopeft.errors import DataError, TaskError
from autopeft.report.tasks import data_line
from autopeft.tasks import Task, load_task
from autopeft.tasks.task import SPLIT_NAMES

COLUMNS = {
    "body": [f"row {i}" for i in range(100)],
    "stars": ["yes" if i % 4 else "no" for i in range(100)],
}
NAMED = {"text": "body", "label": "stars"}


@pytest.fixture
def from_file(tmp_path: Path) -> Task:
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([list(COLUMNS), *zip(*COLUMNS.values(), strict=True)])
    return load_task(tmp_path / "data.csv", seed=3, **NAMED)  # type: ignore[arg-type]


@pytest.mark.parametrize("made", [datasets.Dataset.from_dict, pd.DataFrame])
def test_the_same_rows_are_the_same_task(made: Any, from_file: Task) -> None:
    task = load_task(made(COLUMNS), seed=3, **NAMED)
    assert task.splits == from_file.splits
    assert (task.kind, task.labels, task.metric) == ("classification", ("no", "yes"), "accuracy")
    assert task.source.sha256 == from_file.source.sha256
    assert (task.name, task.source.origin) == ("memory", "memory")
    assert data_line(task.source) == f"Data: {made(COLUMNS).__class__.__name__} (100 rows) (memory)."


def test_splits_that_are_given_are_used() -> None:
    data = datasets.Dataset.from_dict({"text": COLUMNS["body"], "label": COLUMNS["stars"]})
    parts = {"train": data, "validation": data.select(range(10)), "test": data.select(range(10, 30))}
    task = load_task(datasets.DatasetDict(parts))
    assert [len(task.splits[name]) for name in SPLIT_NAMES] == [100, 10, 20]
    assert task.source.name == "DatasetDict (train: 100, validation: 10, test: 20 rows)"


def test_named_classes_and_numbers_keep_their_meaning() -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    columns = {"text": COLUMNS["body"], "label": [i % 2 for i in range(100)]}
    assert load_task(datasets.Dataset.from_dict(columns, features=features)).labels == ("yes", "no")
    whole = pd.DataFrame({"text": COLUMNS["body"], "label": np.arange(100, dtype=np.int8) % 3})
    assert load_task(whole).labels == ("0", "1", "2")
    real = pd.DataFrame({"text": COLUMNS["body"], "label": np.linspace(0, 5, 100, dtype=np.float32)})
    assert load_task(real).kind == "regression"
    assert load_task(whole, kind="regression").metric == "pearson"
    odd = pd.DataFrame({"text": pd.Series(COLUMNS["body"], dtype="string"), "label": COLUMNS["stars"]})
    odd["label"] = odd["label"].astype("category")
    assert load_task(odd).labels == ("no", "yes")


@pytest.mark.parametrize("name", ["numpy", "torch", "pandas", "arrow"])
def test_a_format_for_training_changes_nothing(name: str) -> None:
    plain = datasets.Dataset.from_dict({"text": COLUMNS["body"], "label": [i % 2 for i in range(100)]})
    told = load_task(plain.with_format(name))
    assert (told.splits, told.labels) == (load_task(plain).splits, ("0", "1"))
    lists = datasets.Dataset.from_dict(
        {"text": COLUMNS["body"], "labels": [["a", "b"][: 1 + i % 2] for i in range(100)]}
    )
    parts = datasets.DatasetDict({"train": lists, "test": lists.select(range(20))})
    assert load_task(parts.with_format(name)).splits == load_task(parts).splits
    assert parts.with_format(name)["train"].format["type"] == name, "the data set itself keeps it"


@pytest.mark.parametrize("box", [list, np.array])
def test_a_row_without_words_can_be_left_out(box: Any) -> None:
    words = [box(["a", f"b{i}"]) for i in range(30)]
    words[7] = box([])
    frame = pd.DataFrame({"tokens": words, "ner_tags": [["x", "y"] if len(w) else [] for w in words]})
    with pytest.raises(DataError, match=r"in row 8\..*--drop-empty"):
        load_task(frame)
    assert sum(map(len, load_task(frame, drop_empty=True).splits.values())) == 29


def test_missing_values_are_named_by_row() -> None:
    frame = pd.DataFrame({"text": ["a", None, "c"] * 10, "label": ["x", "y", "z"] * 10})
    with pytest.raises(DataError, match=r"DataFrame \(30 rows\): column 'text' has no text in rows 2, 5"):
        load_task(frame)
    nullable = pd.DataFrame({"text": ["a", "b"] * 10, "label": pd.array([1, None] * 10, dtype="Int64")})
    with pytest.raises(DataError, match="'label' has no label in rows 2, 4"):
        load_task(nullable)


def test_other_objects_are_refused() -> None:
    with pytest.raises(TaskError, match=r"or a pandas `DataFrame`, but got builtins\.list"):
        load_task([("a", "b")])  # type: ignore[arg-type]
    twice = pd.DataFrame([["a", "b", "c"]], columns=["text", "label", "label"])
    with pytest.raises(DataError, match="names a column twice: 'label'"):
        load_task(twice)
    data = datasets.Dataset.from_dict({"text": ["a"], "label": ["b"]})
    with pytest.raises(DataError, match="no train split; it has other"):
        load_task(datasets.DatasetDict({"other": data}))

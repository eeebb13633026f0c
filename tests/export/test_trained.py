"""The task that a saved hybrid is scored on: read as its own kind, in the order of its head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autopeft.errors import DataError, TaskError, UsageError
from autopeft.export.arguments import EvaluateArguments
from autopeft.export.manifest import Card
from autopeft.export.package import Saved
from autopeft.export.trained import task_of, trained
from autopeft.tasks import Task


def saved(folder: Path, kind: str, labels: list[str], metric: str, origin: str = "file") -> Saved:
    data = {"name": "t", "kind": kind, "labels": labels, "metric": metric, "source": {"origin": origin}}
    manifest = {"task": "t", "model": "m", "backbone": {}, "data": data, "training": {"max_length": 16}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Saved(folder, folder, Card.read(folder))


def ratings(path: Path, values: list[Any]) -> str:
    path.write_text("text,label\n" + "".join(f"row {i},{values[i % len(values)]}\n" for i in range(40)))
    return str(path)


def loaded(given: Saved, name: str | None) -> Task:
    asked = EvaluateArguments(task=name, seed=0, stand_in=False, notify=lambda _: None)
    return task_of(trained(given), asked)


def test_whole_numbers_are_numbers_for_a_hybrid_that_learnt_numbers(tmp_path: Path) -> None:
    given = saved(tmp_path, "regression", [], "spearman")
    task = loaded(given, ratings(tmp_path / "whole.csv", [1, 2, 3]))
    assert (task.kind, task.metric) == ("regression", "spearman")
    with pytest.raises(DataError, match="not all numbers"):
        loaded(given, ratings(tmp_path / "words.csv", ["good", "bad"]))


def test_classes_take_the_places_that_the_head_knows(tmp_path: Path) -> None:
    given = saved(tmp_path, "classification", ["c", "b", "a"], "macro_f1")
    task = loaded(given, ratings(tmp_path / "fewer.csv", ["a", "b"]))
    assert task.labels == ("c", "b", "a")
    assert all(
        task.labels[label] == "ab"[int(text.split()[1]) % 2]
        for text, label in zip(task.splits["train"].texts, task.splits["train"].labels, strict=True)
    )
    with pytest.raises(TaskError, match="does not know: d"):
        loaded(given, ratings(tmp_path / "other.csv", ["a", "d"]))


@pytest.mark.parametrize("seed", ["0", -1, True, [1]])
def test_a_seed_that_is_none_is_told_and_another_takes_its_place(tmp_path: Path, seed: Any) -> None:
    saved(tmp_path, "classification", ["a", "b"], "accuracy")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    told = {**manifest, "task": ratings(tmp_path / "file.csv", ["a", "b"]), "arguments": {"seed": seed}}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    known = trained(Saved(tmp_path, tmp_path, Card.read(tmp_path)))
    with pytest.raises(UsageError, match="but a seed is a whole number from 0; name the one"):
        task_of(known, EvaluateArguments())
    assert task_of(known, EvaluateArguments(seed=3)).labels == ("a", "b")


@pytest.mark.parametrize("source", ["x", [1], None])
def test_a_source_that_is_no_table_is_none(tmp_path: Path, source: Any) -> None:
    saved(tmp_path, "classification", ["a", "b"], "accuracy")
    told = json.loads((tmp_path / "manifest.json").read_text())
    told["data"]["source"], told["task"] = source, ratings(tmp_path / "file.csv", ["a", "b"])
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    given = Saved(tmp_path, tmp_path, Card.read(tmp_path))
    for name in (None, told["task"]):
        assert loaded(given, name).labels == ("a", "b")


def test_rows_that_were_in_memory_have_to_be_named(tmp_path: Path) -> None:
    given = saved(tmp_path, "classification", ["a", "b"], "accuracy", origin="memory")
    with pytest.raises(TaskError, match="handed over in memory and are not kept; name data with --task"):
        loaded(given, None)
    assert loaded(given, ratings(tmp_path / "file.csv", ["a", "b"])).labels == ("a", "b")

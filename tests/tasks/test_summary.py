"""What is said of a task's rows before training, and what the same answer for all of them scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, f1_score
from support.saved_model import save_backbone
from transformers import AutoTokenizer

from autopeft.errors import DataError
from autopeft.tasks import Task, load_task
from autopeft.tasks.summary import Constant, DataSummary, summarise


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoTokenizer.from_pretrained(save_backbone(tmp_path_factory.mktemp("bert")))


def write(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("id", "text", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def spam(path: Path, rows: int = 400, every: int = 5) -> Path:
    return write(path, [(i, f"the film {i}", "spam" if i % every == 0 else "ham") for i in range(rows)])


def facts(summary: DataSummary) -> dict[str, str]:
    return dict(summary.facts)


def test_rows_columns_and_lengths_are_said(tmp_path: Path, tokenizer: Any) -> None:
    rows = [(i, f"{i} " + "film " * (i % 10), "b" if i % 2 else "a") for i in range(300)]
    task = load_task(write(tmp_path / "rows.csv", rows))
    found = facts(summarise(task, tokenizer, 9))
    assert found["train"] == "240 rows: a 120 (50.0 %), b 120 (50.0 %)"
    assert found["test"].startswith("30 rows: ")
    assert found["columns"] == "text 'text', label 'label'; not used: 'id'"
    # A row has its number, as many words as its last digit, and two special tokens.
    texts = task.splits["train"].texts
    cut = sum(text.count("film") + 3 > 9 for text in texts) / len(texts)
    assert found["truncated"].startswith(f"{100 * cut:.1f} % of train")
    assert found["truncated"].endswith("to 9 tokens")
    assert 0.2 < cut < 0.4
    assert "dropped" not in found
    assert "repeated" not in found
    json.dumps(summarise(task, tokenizer, 9).to_dict())


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_majority_scores_what_scikit_learn_says(tmp_path: Path, tokenizer: Any, metric: str) -> None:
    task = load_task(spam(tmp_path / "spam.csv"), metric=metric)
    constant = summarise(task, tokenizer, 16).constant
    assert constant is not None
    assert constant.name == "always 'ham'"
    train = task.splits["train"]
    dummy = DummyClassifier(strategy="most_frequent").fit(train.texts, train.labels)
    for name in ("select", "test"):
        split = task.splits[name]  # type: ignore[index]
        predicted = dummy.predict(split.texts)
        expected = {
            "accuracy": accuracy_score(split.labels, predicted),
            "macro_f1": f1_score(split.labels, predicted, average="macro"),
        }
        assert constant.scores[name] == pytest.approx(expected[metric])
    assert np.mean(constant.parts) == pytest.approx(constant.scores["test"], abs=0.02)


def test_numbers_have_a_mean(tmp_path: Path, tokenizer: Any) -> None:
    task = load_task(write(tmp_path / "n.csv", [(i, f"film {i}", i / 7) for i in range(100)]))
    summary = summarise(task, tokenizer, 16)
    labels = task.splits["train"].labels
    assert summary.constant is not None
    assert summary.constant.name == f"always the mean, {sum(labels) / len(labels):.4g}"
    assert summary.constant.scores == {"select": 0.0, "test": 0.0}
    assert "mean" in facts(summary)["train"]
    assert "spam" not in " ".join(summary.remarks)


@pytest.mark.parametrize(("every", "said"), [(5, False), (6, True)])  # 20 % of the rows, and less
def test_rare_classes_get_a_hint(tmp_path: Path, tokenizer: Any, every: int, said: bool) -> None:
    path = spam(tmp_path / "spam.csv", 600, every)

    def hints(**options: Any) -> list[str]:
        summary = summarise(load_task(path, **options), tokenizer, 16)
        return [remark for remark in summary.remarks if "unbalanced" in remark]

    plain = hints()
    assert len(plain) == said
    assert all("--metric macro_f1 and --class-weights balanced" in hint for hint in plain)
    weighted = hints(class_weights="balanced")
    assert len(weighted) == said
    assert all("--class-weights" not in hint for hint in weighted)
    assert hints(metric="macro_f1", class_weights="balanced") == []


def folder(path: Path, test: Sequence[tuple[str, str]]) -> Task:
    train = [(i, f"the film {i}", "abc"[i % 3]) for i in range(300)]
    write(path / "train.csv", train)
    write(path / "test.csv", [(i, *row) for i, row in enumerate(test)])
    return load_task(path)


@pytest.mark.parametrize(
    ("test", "says"),
    [
        ([("new", "a")], "test has 1 row: a score on it says nothing"),
        ([(f"new {i}", "a") for i in range(40)], "test has rows of one class only"),
        ([(f"new {i}", "ab"[i % 2]) for i in range(40)], "test has no row of 'c'"),
        ([(f"new {i}", "abc"[i % 3]) for i in range(29)], "test has 29 rows: scores on so few"),
        ([(f"the film {i}", "abc"[i % 3]) for i in range(40)], "of 40 rows of test stand in train as well"),
    ],
)  # fmt: skip
def test_a_test_that_cannot_say_much_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, test: Any, says: str
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    task = folder(tmp_path / "data", test)
    assert any(says in remark for remark in summarise(task, tokenizer, 16).remarks)


def test_a_class_that_no_model_can_learn_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    task = folder(tmp_path / "data", [(f"new {i}", "abc"[i % 3]) for i in range(40)])
    train = task.splits["train"]
    without = train.take([i for i, label in enumerate(train.labels) if label != 2])
    less = replace(task, splits={**task.splits, "train": without})
    assert any(
        "train has no row of 'c': no model can learn" in r for r in summarise(less, tokenizer, 16).remarks
    )


def test_a_sound_task_gets_no_remark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    sound = folder(tmp_path / "data", [(f"new {i}", "abc"[i % 3]) for i in range(30)])
    assert summarise(sound, tokenizer, 16).remarks == ()


def test_repeated_and_long_rows(tmp_path: Path, tokenizer: Any) -> None:
    rows = [(i, f"film {i % 90} " + "story " * 20, "b" if i % 2 else "a") for i in range(100)]
    rows += [(100, rows[0][1], "b")]  # row 0 says a
    summary = summarise(load_task(write(tmp_path / "r.csv", rows)), tokenizer, 16)
    repeated = facts(summary)["repeated"]
    assert sum(int(word) for word in repeated.split(";")[0].split() if word.isdecimal()) == 11
    assert "1 texts have labels that contradict each other" in repeated
    assert any("--max-length can be up to 32" in r for r in summary.remarks)


@pytest.mark.parametrize("change", ["{} ", " {}", "{}.", "{} .", "THE FILM{}"])
def test_rows_of_test_that_are_near_copies_of_train_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any, change: str
) -> None:
    """Two hundred of them, each a row of train but for a space, its case or a full stop."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    plain = [f"the film {i}" for i in range(200)]
    near = [change.format(text.removeprefix("the film") if "FILM" in change else text) for text in plain]
    task = folder(tmp_path / "data", [(text, "abc"[i % 3]) for i, text in enumerate(near)])
    assert not set(near) & set(plain)
    found = summarise(task, tokenizer, 16).remarks
    in_train = [remark for remark in found if "of 200 rows of test stand in train as well" in remark]
    in_select = [remark for remark in found if "of 200 rows of test stand in select as well" in remark]
    told = [int(remarks[0].split()[0]) for remarks in (in_train, in_select)]
    assert told == [200 - told[1], told[1]]
    assert told[1] > 5, "a tenth of what train was is select"
    assert "leave them out" in in_train[0]


def test_copies_within_a_split_are_told_and_contradictions_of_near_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    texts = ["new {}", "New {}", "new  {}.", " new {}"]
    test = [(texts[i // 30].format(i % 30), "abc"[(i % 30 + (i == 119)) % 3]) for i in range(120)]
    summary = summarise(folder(tmp_path / "data", test), tokenizer, 16)
    assert facts(summary)["repeated"].endswith(
        "kept: 90 of test; 1 texts have labels that contradict each other"
    )
    assert any("Of 120 rows of test 30 are different" in remark for remark in summary.remarks)
    assert not any("train" in remark for remark in summary.remarks)
    assert summary.constant is not None
    assert len(summary.constant.parts) == 30, "as hybrids contribute, so that they can be compared"


def test_empty_rows_are_dropped_where_that_is_asked(tmp_path: Path, tokenizer: Any) -> None:
    rows: list[tuple[Any, ...]] = [(i, f"film {i}", i / 7) for i in range(100)]
    rows[3], rows[5] = (3, " ", 1.0), (5, "film", "")
    path = write(tmp_path / "gaps.csv", rows)
    with pytest.raises(DataError, match=r"'text' has no text in row 4\..*--drop-empty"):
        load_task(path, kind="regression")
    task = load_task(path, drop_empty=True)
    assert task.kind == "regression"  # an empty label hides no numbers
    assert sum(map(len, task.splits.values())) == 98
    assert task.describe()["dropped"] == {str(path): 2}
    assert "2 of " in facts(summarise(task, tokenizer, 16))["dropped"]
    whole = load_task(write(tmp_path / "whole.csv", [r for i, r in enumerate(rows) if i not in (3, 5)]))
    assert task.source.sha256 == whole.source.sha256
    write(path, [(0, "film", 1.5)] * 3 + [(0, "", "")])
    with pytest.raises(DataError, match=r"gaps\.csv without 1 empty rows"):
        load_task(path, drop_empty=True)


def test_what_is_no_better_is_said() -> None:
    constant = Constant("always 'ham'", {"select": 0.9, "test": 0.9756})
    assert "no better on test than always 'ham' (0.9756)" in (constant.unbeaten(0.9756, "test", "It") or "")
    assert constant.unbeaten(0.98, "test", "It") is None
    assert constant.unbeaten(None, "test", "It") is None
    assert constant.unbeaten(0.1, "train", "It") is None

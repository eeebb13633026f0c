"""Tasks by name: stand-ins, files, folders in the hub's layout, GLUE's splits, weights and subsets."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

import autopeft.tasks.glue as glue
import autopeft.tasks.load as load
from autopeft.errors import DataError, TaskError
from autopeft.tasks import Rows, Task, list_tasks, load_task
from autopeft.tasks.glue import GLUE
from autopeft.tasks.task import SPLIT_NAMES


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "glue_available", lambda task: False)
    monkeypatch.setattr(load, "hub_answers", lambda: False)


def sizes(task: Task) -> list[int]:
    return [len(task.splits[name]) for name in SPLIT_NAMES]


def write_csv(path: Path, rows: int = 100, label: Any = lambda i: "yes" if i % 4 == 0 else "no") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((f"{path.stem} {i}", label(i)) for i in range(rows))]
        )
    return path


@pytest.mark.usefixtures("no_hub")
def test_sst2_without_a_hub_says_so_once_and_records_it() -> None:
    said: list[str] = []
    task = load_task("sst2", notify=said.append)
    assert task.name == "movie-sentences"
    assert task.source.stand_in_for == "sst2"
    assert task.source.notice in said
    assert "not comparable" in (task.source.notice or "")
    json.dumps(task.describe())
    for name, options in (("sst2", {"stand_in": False}), ("cola", {})):
        with pytest.raises(TaskError, match="Packaged tasks: movie-sentences, trec"):
            load_task(name, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_hub")
def test_unknown_names() -> None:
    with pytest.raises(TaskError, match="Did you mean 'sms-spam'"):
        load_task("smsspam")
    with pytest.raises(TaskError, match=r"There is no file nowhere\.csv"):
        load_task("nowhere.csv")
    with pytest.raises(TaskError, match="Unknown task 'owner/name'"):
        load_task("owner/name")
    with pytest.raises(TaskError, match="are for files"):
        load_task("trec", text="question")


def hub_data(name: str) -> datasets.DatasetDict:
    """What the hub gives for a GLUE task, made small."""
    task = GLUE[name]
    label: Any = datasets.ClassLabel(names=[f"c{i}" for i in range(task.classes)])
    if task.kind == "regression":
        label = datasets.Value("float32")
    texts = [column for column in (task.text, task.text_pair) if column is not None]
    features = datasets.Features(
        {**{t: datasets.Value("string") for t in texts}, "label": label, "idx": datasets.Value("int32")}
    )

    def split(size: int, prefix: str, hidden: bool = False) -> datasets.Dataset:
        labels = [
            -1 if hidden else i % task.classes if task.classes > 1 else (i % 26) / 5 for i in range(size)
        ]
        columns: dict[str, Any] = {t: [f"{prefix} {t} {i}" for i in range(size)] for t in texts}
        return datasets.Dataset.from_dict(
            {**columns, "label": labels, "idx": list(range(size))}, features=features
        )

    held_out = "validation_matched" if name == "mnli" else "validation"
    parts = {
        "train": split(300, "train"),
        held_out: split(60, "held out"),
        "test": split(40, "hidden", hidden=True),
    }
    if name == "mnli":
        parts["validation_mismatched"] = split(60, "mismatched")
    return datasets.DatasetDict(parts)


@pytest.mark.parametrize("name", sorted(GLUE))
def test_glue_from_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fake(repository: str, config: str) -> datasets.DatasetDict:
        asked.append((repository, config))
        return hub_data(name)

    monkeypatch.setattr(load, "glue_available", lambda task: True)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    task = load_task(f"glue/{name}")
    assert asked == [("nyu-mll/glue", name)]
    assert task.source.origin == "hub"
    assert task.kind == GLUE[name].kind
    assert task.metric == GLUE[name].metric
    assert task.num_labels == GLUE[name].classes
    assert sizes(task) == [270, 30, 60]
    assert all(text.startswith("held out") for text in task.splits["test"].texts)
    assert all(text.startswith("train") for text in task.splits["select"].texts)
    assert (task.splits["test"].pairs is None) == (GLUE[name].text_pair is None)


def test_the_hubs_cache_counts_as_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glue, "hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert not glue.glue_available(GLUE["rte"])
    (tmp_path / "nyu-mll___glue" / "rte").mkdir(parents=True)
    assert glue.glue_available(GLUE["rte"])
    assert not glue.glue_available(GLUE["cola"])


def test_a_hub_that_breaks_off_is_an_error_not_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(repository: str, config: str) -> None:
        raise ConnectionError("reset by peer\nmore")

    monkeypatch.setattr(load, "glue_available", lambda task: True)
    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(TaskError, match=r"cannot be read from the hub: reset by peer$"):
        load_task("sst2")


def test_a_csv_becomes_a_task(tmp_path: Path) -> None:
    task = load_task(str(write_csv(tmp_path / "data.csv")), seed=3, class_weights="balanced")
    assert sizes(task) == [80, 10, 10]
    assert task.labels == ("no", "yes")
    assert task.metric == "accuracy"
    assert task.class_weights == pytest.approx([80 / 2 / 60, 80 / 2 / 20], rel=0.1)
    assert task.source.origin == "file"
    again = load_task(str(tmp_path / "data.csv"), seed=3)
    assert again.splits == task.splits
    assert load_task(str(tmp_path / "data.csv"), seed=4).splits != task.splits


def test_rows_that_are_scored_alone_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\na,no\nb,no\n")
    with pytest.raises(DataError, match="two classes are needed"):
        load_task(path)
    task = load_task(path, scored_by=("maybe", "no", "yes"))
    assert sizes(task) == [0, 0, 2]
    assert (task.labels, task.splits["test"].labels) == (("maybe", "no", "yes"), [1, 1])
    assert task.source.sha256 == load_task(path, scored_by=("no", "yes")).source.sha256
    whole = load_task(str(write_csv(tmp_path / "more.csv")), scored_by=("no", "yes"))
    cut = load_task(str(tmp_path / "more.csv"))
    assert sizes(whole) == [0, 0, 100]
    assert whole.source.sha256 == cut.source.sha256


def test_splits_that_come_with_the_data_stay_theirs(tmp_path: Path) -> None:
    frames = {"train": [("a", "no"), ("b", "yes")] * 10, "test": [("c", "no"), ("d", "no")]}
    tables = {
        name: datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [x for _, x in rows]})
        for name, rows in frames.items()
    }
    task = load_task(datasets.DatasetDict(tables), scored_by=("no", "yes"))
    assert len(task.splits["test"]) == 2
    assert len(task.splits["train"]) > 0


@pytest.mark.parametrize("without", ["train", "test"])
def test_one_split_may_lack_a_column_that_rows_need_not_have(without: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        given = {} if split == without else {"input": "x"}
        rows = [{"instruction": f"{split} {i}", **given, "output": f"o{i}"} for i in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(tmp_path)
    assert {name: set(split.fields["input"]) for name, split in task.splits.items() if name != "select"} == {
        name: {None} if name == without else {"x"} for name in ("train", "test")
    }
    whole = task.splits["train"].joined(task.splits["test"])
    assert len(whole.fields["input"]) == len(whole)


def test_changed_data_change_the_hash(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "data.csv")
    first = load_task(str(path)).source.sha256
    path.write_text(path.read_text().replace("data 7,", "data 7!,"))
    assert load_task(str(path)).source.sha256 != first


def test_regression_from_a_file(tmp_path: Path) -> None:
    task = load_task(str(write_csv(tmp_path / "data.csv", label=lambda i: i / 3)))
    assert (task.kind, task.metric, task.num_labels) == ("regression", "pearson", 1)
    assert isinstance(task.splits["train"].labels[0], float)
    with pytest.raises(TaskError, match="Class weights are for classification"):
        load_task(str(tmp_path / "data.csv"), class_weights="balanced")


@pytest.mark.parametrize(
    ("files", "expected", "test_from"),
    [
        ({"train": 100}, [80, 10, 10], "train"),
        ({"train": 100, "validation": 30}, [90, 10, 30], "validation"),
        ({"train": 100, "test": 30}, [90, 10, 30], "test"),
        ({"train": 100, "validation": 30, "test": 20}, [100, 30, 20], "test"),
    ],
)
def test_a_folder_in_the_hubs_layout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, int],
    expected: list[int],
    test_from: str,
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    for name, rows in files.items():
        write_csv(tmp_path / "mine" / f"{name}.csv", rows)
    task = load_task(str(tmp_path / "mine"))
    assert sizes(task) == expected
    assert all(text.startswith(test_from) for text in task.splits["test"].texts)


def test_a_parquet_folder_with_hidden_test_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "rte").mkdir()
    for name, split in hub_data("rte").items():
        split.to_parquet(str(tmp_path / "rte" / f"{name}-00000-of-00001.parquet"))
    task = load_task(str(tmp_path / "rte"))
    assert task.labels == ("c0", "c1")
    assert sizes(task) == [270, 30, 60]
    assert task.splits["test"].pairs is not None
    assert task.splits["test"].texts[0] == "held out sentence1 0"


def test_unusable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files"):
        load_task(str(tmp_path / "empty"))
    write_csv(tmp_path / "only" / "test.csv")
    with pytest.raises(DataError, match="no train split; it has test"):
        load_task(str(tmp_path / "only"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.jsonl").write_text("{not json")
    with pytest.raises(DataError, match=r"train\.jsonl, line 1 is not JSON"):
        load_task(str(tmp_path / "bad"))


def test_subsets_are_stratified_nested_and_ordered() -> None:
    task = load_task("sms-spam")
    small, large = (task.subset(train=n, select=50, test=10**9, seed=1) for n in (200, 400))
    assert sizes(small) == [200, 50, len(task.splits["test"])]
    assert set(small.splits["train"].texts) < set(large.splits["train"].texts)
    assert sum(map(int, small.splits["train"].labels)) / 200 == pytest.approx(0.126, abs=0.006)
    places = {text: i for i, text in enumerate(task.splits["train"].texts)}
    order = [places[text] for text in small.splits["train"].texts]
    assert order == sorted(order)
    assert task.subset(train=200, seed=2).splits["train"] != small.splits["train"]
    limited = load_task("sms-spam", rows=Rows(train=200, select=50), seed=1)
    assert sizes(limited) == sizes(small)
    with pytest.raises(TaskError, match="test=0"):
        task.subset(test=0)


def test_a_train_split_that_is_cut_to_one_class_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"film {i}", "label": "rare" if i % 200 == 0 else "usual"} for i in range(1_000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = load_task(str(tmp_path / "rows.jsonl"), class_weights="balanced")
    assert set(whole.splits["train"].labels) == {0, 1}
    with pytest.raises(DataError, match="one class only"):
        whole.cut(train=20, select=None, test=None, seed=0)
    with pytest.raises(DataError, match="one class only"):
        load_task(str(tmp_path / "rows.jsonl"), rows=Rows(train=20))


def test_metric_and_weights_are_checked() -> None:
    assert load_task("sms-spam", metric="f1", class_weights=[1, 2]).class_weights == [1.0, 2.0]
    with pytest.raises(TaskError, match="choose from accuracy"):
        load_task("trec", metric="pearson")
    with pytest.raises(TaskError, match="2 positive class weights"):
        load_task("sms-spam", class_weights=[1.0, 0.0])
    with pytest.raises(TaskError, match="neither 'balanced'"):
        load_task("sms-spam", class_weights="even")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_list_of_tasks_is_true_of_the_tasks() -> None:
    listed = {info.name: info for info in list_tasks()}
    assert set(GLUE) < set(listed)
    for info in listed.values():
        if info.origin == "package":
            task = load_task(info.name)
            found = (sum(sizes(task)), len(task.labels), task.metric)
            assert found == (info.rows, info.classes, info.metric)
            assert task.source.licence == info.licence


def test_near_copies_of_ones_own_rows_stay_in_one_split(tmp_path: Path) -> None:
    """Those of a packaged task may part: scores of its splits are recorded."""
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [
            (f"a film {i // 2}" + " " * (i % 2) + "." * (i % 2), "yes" if i % 4 > 1 else "no")
            for i in range(200)
        ]
        csv.writer(file).writerows([("text", "label"), *rows])
    task = load_task(str(path))
    texts = [{text.rstrip(" .") for text in task.splits[name].texts} for name in SPLIT_NAMES]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 100
    assert task.describe()["texts"] == {"train": 80, "select": 10, "test": 10}
    assert sizes(task) == [160, 20, 20]

"""Several tasks by one name, and YAML files of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import TaskError, UsageError
from autopeft.tasks import load_task, task_set
from autopeft.tasks.several import named_tasks
from autopeft.tasks.split import Rows


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three tables, one of which has columns with other names."""
    monkeypatch.chdir(tmp_path)
    tables = (
        ("films.csv", "text,label", 2),
        ("books.csv", "text,label", 3),
        ("notes.csv", "body,stars", 3),
    )
    for name, columns, classes in tables:
        rows = [f"{name} text {i},{'abc'[i % classes]}" for i in range(90)]
        Path(name).write_text("\n".join([columns, *rows]) + "\n")
    return tmp_path


def test_names_with_commas_between_them_are_a_set(place: Path) -> None:
    both = load_task("films.csv, books.csv", seed=3)
    by_hand = task_set([load_task(name, seed=3) for name in ("films.csv", "books.csv")])
    assert (both.kind, both.name) == (by_hand.kind, by_hand.name)
    assert both.splits["test"].texts == by_hand.splits["test"].texts
    assert (both.source.origin, both.source.name) == ("several", "films.csv, books.csv")
    assert both.source.sha256 == by_hand.source.sha256
    assert len(load_task("films.csv,books.csv", rows=Rows(20, 6, 6)).splits["train"]) == 20


def test_a_file_with_a_comma_in_its_name_is_one_task(place: Path) -> None:
    Path("films.csv").rename("films,of,1999.csv")
    assert load_task("films,of,1999.csv").source.origin == "file"


def test_a_yaml_file_says_more_of_each(place: Path) -> None:
    Path("tasks.yaml").write_text(
        "temperature: 4\nbatches: mixed\ntasks:\n- films.csv\n"
        "- {task: notes.csv, name: notes, text: body, label: stars, metric: macro_f1, weight: 3}\n"
    )
    told = dict(load_task("tasks.yaml").task_kind.encoder.facts(()))
    assert told["tasks"] == "films.csv (accuracy), notes (macro_f1)"
    assert told["mixture"] == "mixed batches, temperature 4, weights 1, 3"
    found = named_tasks("tasks.yaml")
    assert found is not None
    assert found[1].rows_of([100, 100]) == [50, 150]
    Path("list.yaml").write_text("- films.csv\n- books.csv\n")
    assert load_task("list.yaml").kind == load_task("films.csv,books.csv").kind
    assert [t.task for t in (named_tasks("trec,list.yaml") or ([],))[0]] == ["trec", "films.csv", "books.csv"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("- {task: films.csv, colour: red}\n- notes.csv\n", "tasks.0.colour"),
        ("- {task: films.csv, weight: 0}\n- notes.csv\n", "tasks.0.weight"),
        ("- {name: films}\n- notes.csv\n", "tasks.0.task"),
        ("tasks: []\n", "tasks"),
        ("- films.csv\n- tasks.yaml\n", "tasks.yaml, which is several tasks itself"),
        ("- films.csv,books.csv\n- notes.csv\n", "several tasks itself"),
        ("films.csv\n", "the file"),
        ("tasks: [films.csv, notes.csv]\nbatches: sorted\n", "homogeneous or mixed"),
        ("tasks: [films.csv, notes.csv]\ntemperature: 0\n", "from 1"),
        ("- {task: films.csv, label: nosuch}\n- notes.csv\n", "nosuch"),
    ],
)
def test_a_yaml_file_that_says_something_else_is_refused(place: Path, text: str, why: str) -> None:
    Path("tasks.yaml").write_text(text)
    with pytest.raises(UsageError, match=why):
        load_task("tasks.yaml")


def test_what_would_be_said_of_each_is_refused(place: Path) -> None:
    with pytest.raises(TaskError, match="names several tasks, and text, metric"):
        load_task("films.csv,books.csv", text="body", metric="macro_f1")
    with pytest.raises(TaskError, match="nosuch"):
        load_task("films.csv,nosuch.csv")

"""A search of each kind of task: the rows that are made, what the winner has to beat, and the whole way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopeft import load_task
from autopeft.tasks.kinds.registry import kind_names

FOLDER = "search_by_kind"
Import = Callable[[str], Any]
TINY = ("--trials", "1", "--steps", "2", "--workers", "0", "--max-length", "48", "--baselines", "head")


def test_every_kind_has_a_search(load: Import) -> None:
    settings = load("settings").SETTINGS
    assert set(settings) == set(kind_names())
    made = [kind for kind, setting in settings.items() if callable(setting.task)]
    assert made == ["regression", "multi_label", "multiple_choice"]


@pytest.mark.parametrize("kind", ["regression", "multi_label", "multiple_choice"])
def test_made_rows_are_read_as_their_kind(load: Import, tmp_path: Path, kind: str) -> None:
    setting = load("settings").SETTINGS[kind]
    path = setting.task(tmp_path)
    task = load_task(str(path))
    assert task.kind == kind
    row = json.loads(path.read_text().splitlines()[0])
    if kind == "multiple_choice":
        assert row["choices"][row["answer"]] in {
            "abbreviation",
            "description",
            "thing",
            "person",
            "place",
            "number",
        }
        assert len({r.split('"answer": ')[1] for r in path.read_text().splitlines()}) == 6
    if kind == "regression":
        assert row["label"] == len(row["text"]) / 10


def test_what_is_to_be_beaten(load: Import) -> None:
    run, settings = load("run"), load("settings").SETTINGS
    of = {"difference": 0.1, "low": 0.05, "high": 0.15, "rows": 3}
    found = {
        "run": "r",
        "over_constant": {"baseline": "always 'no'", **of},
        "comparisons": [
            {"baseline": "LoRA rank 2", **of},
            {"baseline": "untuned backbone", **of, "low": -0.1},
        ],
    }
    assert run.trivial(settings["classification"], found)["baseline"] == "always 'no'"
    assert run.trivial(settings["seq2seq"], found)["low"] == -0.1
    with pytest.raises(SystemExit, match="untuned"):
        run.trivial(settings["seq2seq"], {**found, "comparisons": []})


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["classification", "regression", "multi_label", "token_classification", "question_answering"],
)
def test_the_whole_way(load: Import, tmp_path: Path, kind: str) -> None:
    run, settings = load("run"), load("settings").SETTINGS
    row = run.measure(kind, settings[kind], settings[kind].model, tmp_path, TINY)
    assert row["answers"]
    assert row["test"]
    assert row["trivial"]["low"] <= row["trivial"]["difference"] <= row["trivial"]["high"]
    line = run.tables([row]).splitlines()[-1]
    assert f"`{kind}`" in line
    assert row["trivial"]["baseline"] in line

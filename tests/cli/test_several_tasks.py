"""`--tasks` on the command line: what learns several tasks is trained, asked, exported and searched for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main

RECIPE = """
autopeft: 2
name: apart
layers:
- attach: [{switch: [{lora: {rank: 2}}]}]
training: {learning_rate: 0.01}
"""
TASKS = """
temperature: 2
tasks:
- {task: reviews.csv, name: mood, text: body, label: verdict}
- {task: other.csv, name: other one, text: body, label: verdict, metric: macro_f1, weight: 2}
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    shutil.copy("reviews.csv", "other.csv")
    Path("tasks.yaml").write_text(TASKS)
    Path("apart.yaml").write_text(RECIPE)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(list(words)) == code, capsys.readouterr().err
    out, err = capsys.readouterr()
    return err if code else out


def test_what_was_trained_is_asked_and_exported_by_the_name_of_a_task(
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = ("train", "-r", "apart.yaml", "--tasks", "tasks.yaml", "-m", "bert", "--steps", "4")
    trained: Any = json.loads(said(capsys, *train, "--max-length", "16", "-o", "run", "--json"))
    assert trained["metric"] == "mean_of_tasks"
    ask = ("predict", "run", "--text", "the good film", "--json")
    assert "--task" in said(capsys, *ask, code=2)
    answers = [json.loads(said(capsys, *ask, "--task", name)) for name in ("mood", "other one")]
    assert all(answer[0]["label"] in ("no", "yes") for answer in answers)
    told = json.loads(said(capsys, "export", "run", "-o", "out", "--as", "lora", "--json"))
    assert told["facts"]["tasks"].keys() == {"mood", "other one"}
    for folder, whole in (("mood", answers[0]), ("other_one", answers[1])):
        assert (Path("out") / folder / "lora" / "adapter_config.json").is_file()
        (answer,) = json.loads(said(capsys, "predict", f"out/{folder}", "--text", "the good film", "--json"))
        assert answer["label"] == whole[0]["label"]


def test_a_search_takes_tasks_in_the_default_space(capsys: pytest.CaptureFixture[str]) -> None:
    search = ("search", "--tasks", "tasks.yaml", "-m", "bert", "--budget", "20%", "--max-length", "16")
    shown = said(capsys, *search, "--dry-run")
    assert "mean_of_tasks" in shown
    assert "for each task" in shown

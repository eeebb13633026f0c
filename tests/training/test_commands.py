from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pandas
import pytest

from autopeft.tasks import load_task, task_set
from autopeft.training.commands import next_steps, predict_command, train_command


@pytest.mark.parametrize(("task", "other"), [("sst2", "trec"), ("trec", "movie-sentences"), (None, "trec")])
def test_the_other_task_is_another(task: str | None, other: str) -> None:
    assert f"--task {other}" in train_command("r.yaml", task=task, model="")


def test_the_recipe_goes_with_its_backbone() -> None:
    assert train_command("a/recipe.yaml", task="x", model="minilm") == (
        "autopeft train --recipe a/recipe.yaml --task trec"
    )
    words = shlex.split(train_command("a b/recipe.yaml", task="trec", model="my bert"))
    assert words[3:] == ["a b/recipe.yaml", "--task", "movie-sentences", "--model", "my bert"]
    assert "--model" not in train_command("r.yaml", task="x", model="")


def test_a_hybrid_of_pairs_is_asked_about_pairs() -> None:
    assert shlex.split(predict_command("a b", pairs=True)) == [
        *("autopeft", "predict", "a b", "--text", "…", "--text-pair", "…")
    ]
    assert "--text-pair" not in predict_command("x", pairs=False)
    assert predict_command("x", pairs=False, model="here").endswith(" --model here")


def test_a_hybrid_that_answers_questions_is_asked_from_a_file() -> None:
    assert predict_command("x", pairs=False, kind="multiple_choice").endswith(
        "--file path/to/questions.jsonl"
    )
    assert predict_command("x", pairs=False, kind="image_classification").endswith("--file path/to/images")
    assert predict_command("x", pairs=False, kind="of a plug-in").endswith('--text "…"')


def test_the_folder_to_export_to_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "winner").mkdir()
    (tmp_path / "winner-2").write_text("a file")
    text = next_steps("runs/x", task="sst2", model="minilm", pairs=False)
    assert "autopeft export runs/x -o winner-3" in text
    assert "--recipe winner-3/recipe.yaml --task trec" in text
    assert "autopeft predict runs/x" in text


def test_one_of_several_tasks_is_asked_by_its_name() -> None:
    alone = [load_task(pandas.DataFrame({"text": list("abcdefghijkl"), "label": list("xy") * 6}))] * 2
    both = task_set([replace(task, name=name) for name, task in zip(("trec", "a b"), alone, strict=True)])
    assert predict_command("x", pairs=True, kind=both.kind) == 'autopeft predict x --task trec --text "…"'
    trained = train_command("r.yaml", task="trec,a b", model="minilm", kind=both.kind)
    assert trained.endswith("--task movie-sentences")

"""The commands from outside: what they print, what they leave behind, and that processes agree."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.saved_model import save_backbone, write_reviews

from autopeft.cli import main
from autopeft.recipe import Recipe

RECIPE = """\
autopeft: 2
name: pair
layers:
  - at: all
    attach:
      - lora: {rank: 4, sites: [q, v, up]}
training: {learning_rate: 2.0e-2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_reviews(folder / "reviews.csv")
    (folder / "pair.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> dict[str, Any]:
    """What `autopeft train` says."""
    argv = ["train", "--recipe", "pair.yaml", "--task", "reviews.csv", "--label", "verdict", "--text", "body"]
    argv += ["--model", "bert", "--steps", "40", "--max-length", "24", "-o", "run", "--json"]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.chdir(place)
        assert main(argv) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("autopeft 0.")


def test_training_learns_and_leaves_a_run(place: Path, trained: dict[str, Any]) -> None:
    assert trained["test_mean"] > 0.8
    assert trained["counts"]["deployed"] == 3 * 4 * (64 + 64 + 96)
    names = {p.name for p in (place / "run").iterdir()}
    assert {"manifest.json", "recipe.yaml", "result.json", "winner"} <= names
    described = json.loads((place / "run" / "manifest.json").read_text())
    assert described["data"]["labels"] == ["no", "yes"]
    assert len(described["backbone"]["sha256"]) == 64


@pytest.mark.slow
def test_another_process_scores_and_predicts_the_same(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    found = json.loads(run(place, "evaluate", "run", "--json").stdout)
    assert found["score"] == pytest.approx(trained["test_mean"], abs=1e-9)
    assert main(["predict", "run", "--text", "the film was good", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["export", "run", "-o", "winner"]) == 0
    again = json.loads(run(place, "predict", "winner", "--text", "the film was good", "--json").stdout)
    assert again == first
    assert first[0]["label"] == "yes"


@pytest.mark.slow
def test_a_table_is_predicted_row_for_row(place: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """A header is no text, an empty row has its place, and the file has as many rows as came."""
    rows = tmp_path / "rows.csv"
    rows.write_text('id,body\n1,"the film, it was good"\n2,\n3,the story was bad\n')
    done = run(place, "predict", "run", "--file", str(rows), "--out", str(tmp_path / "answers.csv"))
    assert "row 2 (no text)" in done.stderr
    with (tmp_path / "answers.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [bool(row["label"]) for row in found] == [True, False, True]
    assert found[0]["label"] == "yes"
    assert [row["problem"] for row in found] == ["", "no text", ""]
    assert found[0]["text"] == "the film, it was good"


def test_lines_from_stdin_keep_their_places(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    lines = b"the film was good\n\nthe \x1b[2J story was bad\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert main(["predict", "run", "--file", "-"]) == 0
    out, err = capsys.readouterr()
    first, second, third = out.splitlines()
    assert first.startswith("yes")
    assert second == "no answer: no text\t"
    assert third.endswith("\tthe �[2J story was bad")
    assert "1 of 3 rows has no answer" in err


def test_a_score_is_shown_with_each_class(
    place: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(["evaluate", "run"]) == 0
    out = capsys.readouterr().out
    for words in ("precision", "support", "the same figure", "by what was predicted"):
        assert words in out
    assert main(["evaluate", "run", "--split", "all"]) == 0
    assert "which flatters the score" in capsys.readouterr().out


@pytest.mark.slow
def test_data_are_shown_before_training_and_beside_the_scores(place: Path) -> None:
    """A class that is hardly there and a blank text: nothing of it passes in silence."""
    rows = [f"the {'film ' * (i % 9 + 1)}{i},{'yes' if i % 40 == 0 else 'no'}" for i in range(200)]
    (place / "rare.csv").write_text("\n".join(["text,label", ",no", *rows]) + "\n")
    words = ("-r", "pair.yaml", "-t", "rare.csv", "-m", "bert", "--steps", "2", "--max-length", "24")
    done = run(place, "train", *words, "-o", "rare", "--drop-empty")
    before, _, _ = done.stderr.partition("step 1/2")
    for words in ("train: 1", "columns: text 'text'", "1 of rare.csv", "always 'no'", "--metric macro_f1"):
        assert words in before
    assert "no better on test than always 'no'" in done.stdout
    data = json.loads((place / "rare" / "manifest.json").read_text())["data"]
    assert [fact["name"] for fact in data["summary"]["facts"]][:3] == ["train", "select", "test"]
    result = json.loads((place / "rare" / "result.json").read_text())
    assert result["constant"]["name"] == "always 'no'"
    assert result["constant"]["test_mean"] == result["test_mean"]
    # The hybrid's own rows are read again as they were.
    assert json.loads(run(place, "evaluate", "rare", "--json").stdout)["rows"] == data["rows"]["test"]


@pytest.mark.slow
def test_a_fixed_recipe_whose_name_is_no_word(place: Path) -> None:
    shown = run(place, "show", "compacter++", "--model", "bert").stdout
    assert "compacter++" in shown
    argv = [
        "train",
        "--recipe",
        "compacter++",
        "--task",
        "reviews.csv",
        "--label",
        "verdict",
        "--text",
        "body",
    ]
    argv += ["--model", "bert", "--steps", "2", "--max-length", "24"]
    run(place, *argv)
    (folder,) = (place / "runs").iterdir()
    assert Recipe.load(folder / "recipe.yaml").name == "compacter++"
    run(place, "report", str(folder))
    run(place, "export", str(folder), "-o", "plus")
    assert Recipe.load(place / "plus" / "recipe.yaml").name == "compacter++"
    answer = json.loads(run(place, "predict", "plus", "--text", "the film was good", "--json").stdout)
    assert answer[0]["label"] in ("yes", "no")


def test_show_draws_and_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    show = ["show", "pair.yaml", "--model", "bert"]
    assert main(show) == 0
    out = capsys.readouterr().out
    for word in ("encoder", "0-2", "deployed", "trained", "head", "backbone", "2,688"):
        assert word in out
    assert main([*show, "--format", "mermaid"]) == 0
    assert "lora" in capsys.readouterr().out
    assert main([*show, "--format", "svg"]) == 0
    assert capsys.readouterr().out.lstrip().startswith("<svg")
    assert main([*show, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"]["deployed"] == sum(e["deployed"] for e in data["entries"])


def test_lists_are_data_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    for argv, key in (
        (["methods"], "lora"),
        (["tasks"], "trec"),
        (["spaces", "--model", "bert"], "autopeft"),
    ):
        assert main([*argv, "--json"]) == 0
        assert key in {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert main(["methods", "lora", "--json"]) == 0
    schema = json.loads(capsys.readouterr().out)["config"]
    assert schema["properties"]["rank"]["minimum"] == 1


def test_runs_lists_what_was_trained(
    place: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "--runs", str(place), "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["run"]["state"] == "finished"
    assert rows["run"]["test_mean"] == trained["test_mean"]

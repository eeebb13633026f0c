"""Runs of d8dcd6f2 (see `tests/fixtures/runs/record.py`) are read, used and gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.cli import main
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import unpooled
from autopeft.runs.folder import RunFolder
from autopeft.search.optimization.warm_start import points_from
from autopeft.search.space.space import Space

RECORDED = Path(__file__).parents[1] / "fixtures" / "runs"
RUNS = ("finished", "fixed", "interrupted")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the runs were made in, with its backbone, data and cache."""
    found = tmp_path / "place"
    shutil.copytree(RECORDED, found)
    monkeypatch.chdir(found)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(found / "cache"))
    return found


def lines(run: str, name: str = "trials.jsonl") -> list[dict[str, Any]]:
    path = RECORDED / run / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_they_are_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--runs", ".", "--json"]) == 0
    found = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["state"] for name, row in found.items()} == {
        "finished": "finished",
        "fixed": "finished",
        "interrupted": "unfinished",
    }
    assert found["finished"]["test_mean"] == pytest.approx(25 / 27)
    assert all((row["task"], row["model"]) == ("reviews.csv", "bert") for row in found.values())


@pytest.mark.parametrize("run", RUNS)
def test_they_are_shown_as_they_were_written(
    place: Path, run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", run, "--runs", ".", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    for name in ("trials", "finals"):
        since = [record.pop("by_task") for record in shown[name]]  # which a record has since then
        assert shown[name] == lines(run, f"{name}.jsonl")
        assert not any(since)
    assert shown["manifest"] == json.loads((RECORDED / run / "manifest.json").read_text())
    assert main(["runs", run, "--runs", "."]) == 0
    out = capsys.readouterr().out
    for line in (*lines(run), *lines(run, "finals.jsonl")):
        assert f"\n{line['label']} " in out


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            "finished",
            (
                "with 512 parameters (9.552 % of the backbone) scored accuracy 0.9259",
                "2 complete, 1 duplicate, 4 stopped (planned: 6)",
                "LoRA rank 8 on q, v of all layers",
            ),
        ),
        ("fixed", ("fixed recipe, finished", "This run trained a fixed recipe: there was no search.")),
        (
            "interrupted",
            (
                "This run is not finished. Best so far: lora + ia3",
                "with 384 parameters",
                "accuracy 0.9615 on select in one run (trial 0)",
                "1 complete, 1 duplicate, 1 not ended, 2 paused (planned: 9)",
                "paused at step 50",
                "--resume ",
            ),
        ),
    ],
)
def test_they_are_reported(place: Path, run: str, words: tuple[str, ...]) -> None:
    assert main(["report", run, "--runs", ".", "-o", "report.html"]) == 0
    page = (place / "report.html").read_text(encoding="utf-8")
    for text in words:
        assert text in page, text
    assert "<svg" in page, "the graph is drawn on the backbone that is beside the run"
    assert "cannot be read" not in page


def test_weights_score_what_they_scored(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("finished", "fixed"):
        assert main(["export", run, "-o", f"out-{run}", "--as", "autopeft"]) == 0
        capsys.readouterr()
        assert main(["evaluate", f"out-{run}", "--text", "body", "--label", "verdict", "--json"]) == 0
        score = json.loads(capsys.readouterr().out)["score"]
        result = RunFolder(place / run).result()
        assert min(abs(score - s) for s in result.get("test", [result["test_mean"]])) < 1e-6
    assert main(["predict", "out-fixed", "--text", "the good film"]) == 0
    assert capsys.readouterr().out.split()[0] in ("yes", "no")


def test_searches_start_from_them(place: Path) -> None:
    spec = spec_of(load_config(resolve_model("bert")))
    bound = replace(Space.load("space.yaml"), pooling="mean").bind(spec)
    found, notices = points_from(["finished", "interrupted", "fixed"], bound, runs=".")
    assert notices == []
    winner = Recipe.from_file("finished/recipe.yaml")
    first = bound.materialize(found[0])
    assert [e.method for e in first.entries()] == [e.method for e in winner.entries()]
    assert first.training.learning_rate == pytest.approx(winner.training.learning_rate)
    # The winner, the other trial that was trained to its end, which is that of the interrupted run, and the
    # fixed recipe.
    assert len(found) == 3


def journal_of(run: Path) -> list[optuna.trial.FrozenTrial]:
    copy = run.parent / "journal-copy.log"
    shutil.copyfile(run / "journal.log", copy)
    study = optuna.load_study(study_name="autopeft", storage=JournalStorage(JournalFileBackend(str(copy))))
    return study.get_trials(deepcopy=False)


def autopeft(place: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", *words],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_one_that_was_killed_goes_on_to_its_end(place: Path) -> None:
    before = journal_of(place / "interrupted")
    ended = [t.number for t in before if t.state.is_finished()]
    waiting = [t.number for t in before if not t.state.is_finished() and "rungs" in t.user_attrs]
    running = [t.number for t in before if t.number not in (*ended, *waiting)]
    assert (ended, waiting, running) == ([0, 1], [2, 3], [4])
    out = autopeft(place, "search", "--resume", "interrupted")
    assert "trial 0:" not in out, "it was trained to its end already"
    for number in waiting:
        assert f"trial {number}: {before[number].user_attrs['rungs']['50']:.4f} at step 50, so far" not in out
    run = RunFolder(place / "interrupted")
    result = run.result()
    assert not result["interrupted"]
    assert len(result["test"]) == 4
    assert sum(result["trials"][state] for state in ("complete", "stopped")) == 9
    after = journal_of(run.path)
    assert after[0].values == before[0].values
    for number in waiting:
        assert after[number].user_attrs["rungs"].items() >= before[number].user_attrs["rungs"].items()
        assert after[number].user_attrs["hash"] == before[number].user_attrs["hash"]
    assert after[4].user_attrs["outcome"]["failure"] == "stopped", "its process was gone"
    point = after[5].user_attrs["proposed"]
    assert point == before[4].user_attrs["proposed"], "it comes again"
    for trial in after:
        (block,) = trial.user_attrs["recipe"]["layers"]
        lora = next(item["lora"] for item in block["attach"] if "lora" in item)
        told = {"ia3.on": "ia3" in block["attach"], "lora.rank": lora["rank"]}
        assert trial.params.items() >= told.items(), "the journal has the figures of the recipe"
        rate = trial.user_attrs["recipe"]["training"]["learning_rate"]
        assert trial.params["learning_rate"] == rate
    (kept,) = [line for line in run.lines() if line["number"] == 0]
    assert {**kept, "worker": ""} == {**lines("interrupted")[0], "worker": ""}
    # Trials are named after what is in them.
    recorded = {line["number"]: line for line in run.lines()}
    named = {number: line["recipe"]["name"] for number, line in recorded.items()}
    for number, name in named.items():
        assert re.fullmatch(rf"lora(\+ia3)?\+mean_pooling-{recorded[number]['hash'][:6]}", name)
    assert result["recipe"]["name"] == named[result["number"]]
    assert Recipe.from_file(run.winner / "recipe.yaml").name == named[result["number"]]
    assert not run.state.exists()


def _line(number: int, content: bytes) -> Callable[[bytes], bytes]:
    def change(before: bytes) -> bytes:
        lines = before.splitlines(keepends=True)
        lines[number - 1] = content + b"\n"
        return b"".join(lines)

    return change


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("journal.log", _line(6, b"garbled"), "Line 6 of "),
        ("journal.log", _line(6, b'{"op_code": 8, "trial_id": "x"}'), "Line 6 of "),
        ("journal.log", _line(2, b"\xff\xfe"), "Line 2 of "),
        ("journal.log", lambda before: before.replace(b'"select"', b"7"), "Line "),
        ("space.yaml", lambda before: before + b"\xff", "not UTF-8 text"),
        ("space.yaml", lambda before: before + b"x: [", "space.yaml:"),
        ("manifest.json", lambda before: before[:100], "manifest.json' is not valid JSON"),
        ("manifest.json", lambda before: before.replace(b'"effort": {', b'"effort": {"x": 1,'), "effort.x"),
        ("manifest.json", lambda before: before.replace(b'"seed": 0', b'"seed": "0"'), "seed"),
        ("space.yaml", lambda before: before.replace(b"4", b"3"), "another search space than the space.yaml"),
        (".state/clock.json", lambda before: b'{"seconds": "many"}', "does not hold seconds; remove it"),
    ],
)
def test_what_was_damaged_is_told_and_kept(
    place: Path, name: str, change: Callable[[bytes], bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "interrupted" / name
    assert change(file.read_bytes()) != file.read_bytes()
    file.write_bytes(change(file.read_bytes()))
    before = {p: p.read_bytes() for p in (place / "interrupted").rglob("*") if p.is_file()}
    assert main(["search", "--resume", "interrupted", "--workers", "0"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("error: ")
    assert says in told
    assert Path(name).name in told
    # The locks of the process that was killed are stale.
    assert all(p.read_bytes() == content for p, content in before.items() if p.suffix != ".lock")
    assert not (place / "interrupted" / "journal.log-new").exists()
    if name == "journal.log":
        assert "`autopeft report" in told
        assert main(["report", "interrupted", "--out", "report.html"]) == 0


@pytest.mark.slow
def test_a_new_search_begins_with_what_they_found(place: Path) -> None:
    autopeft(
        place,
        *("search", "--task", "reviews.csv", "--text", "body", "--label", "verdict", "--model", "bert"),
        *("--space", "space.yaml", "--budget", "20%", "--max-length", "16", "--batch-size", "8"),
        *("--trials", "2", "--steps", "10", "--workers", "1", "--baselines", "none", "--out", "new"),
        *("--from", "finished", "--from", "interrupted"),
    )
    first = RunFolder(place / "new").lines()[0]["recipe"]
    found = unpooled(Recipe.from_dict(first))  # what its heads read is found anew
    assert found.hash() == unpooled(Recipe.from_file("finished/recipe.yaml")).hash()

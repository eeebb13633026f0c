"""Whole searches whose recipes start from what was trained before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.saved_model import small_search
from support.searching import Dies

import autopeft
from autopeft import bank
from autopeft.cli import main
from autopeft.errors import DataError, UsageError
from autopeft.export.package import find_saved, write_package
from autopeft.recipe import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search

LORA: dict[str, Any] = {"lora": {"rank": 2}}
SPACE = """
name: starts
inputs: {a: source, b: {bank: kept}, c: {run: night}}
layers:
  - attach:
      - {lora: {rank: 2}, from: {choice: [b, c]}, frozen: {choice: [true, false]}}
      - optional: {ia3: {}, from: a}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a search in a folder with three hybrids: a folder, one in the bank, and a run."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = small_search(tmp_path, trials=3, steps=12, baselines="none", fidelity="none", workers=0)
    for out, items, seed in (("source", ["ia3"], 1), ("kept", [LORA], 2), ("runs/night", [LORA], 3)):
        tree = {
            "name": out.split("/")[-1],
            "layers": [{"attach": items}],
            "training": {"learning_rate": 0.02},
        }
        autopeft.train(
            task=small["task"], text="body", label="verdict", model=small["model"], seed=seed, out=out,
            recipe=Recipe.from_dict(tree), steps=10, batch_size=8, max_length=16,
        )  # fmt: skip
    bank.add("kept", "kept")
    shutil.rmtree("kept")
    (tmp_path / "space.yaml").write_text(SPACE)
    return {**small, "space": "space.yaml", "portfolio": False}


def altered(folder: str) -> None:
    tensors = load_file(f"{folder}/weights.safetensors")
    name = next(name for name in tensors if not name.startswith("head."))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, f"{folder}/weights.safetensors", metadata={"format": "pt"})


def test_a_search_starts_from_inputs_and_says_which_the_winner_has(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = search(**arguments)
    assert {trial.state for trial in result.trials} <= {"complete", "duplicate"}, result.trials
    contents = {"b": bank.entry("kept").sha256}
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["inputs"]["b"] == {"bank": "kept", "sha256": contents["b"]}
    assert {name: set(item) for name, item in manifest["inputs"].items()} == {
        "a": {"folder", "sha256"}, "b": {"bank", "sha256"}, "c": {"run", "sha256"}
    }  # fmt: skip
    for trial in result.trials:
        named = Recipe.from_dict(dict(trial.recipe)).inputs
        assert {name: item.to_data() for name, item in named.items()} == {
            name: manifest["inputs"][name] for name in named
        }
    told = {
        tuple(trial.counts[k] for k in ("deployed", "trained")) for trial in result.trials if trial.counts
    }
    assert any(deployed > trained for deployed, trained in told), "no trial had a frozen part"

    winner = result.winner
    assert Recipe.from_file("run/winner/recipe.yaml").inputs == winner.inputs
    short = [f"{item.sha256[:12]}…" for item in winner.inputs.values()]  # as in these lines alone
    assert short
    capsys.readouterr()
    assert main(["runs", "run"]) == 0
    listed = capsys.readouterr().out
    write_package(find_saved("run"), "exported")
    assert main(["report", "run", "--out", "report.html"]) == 0
    pages = listed, Path("exported/README.md").read_text(), Path("report.html").read_text()
    for text in pages:
        assert all(content in text for content in short)
    assert "Input " in listed
    assert Recipe.from_file("exported/recipe.yaml").inputs == winner.inputs


def test_a_search_goes_on_from_what_its_inputs_still_hold(arguments: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        search(**{**arguments, "confirm_seeds": 2}, reporter=Dies(1))
    kept = Path("bank/kept")
    shutil.copytree(kept, "before")
    altered("bank/kept")
    before, after = json.loads(Path("run/manifest.json").read_text())["inputs"]["b"]["sha256"], "now"
    with pytest.raises(UsageError, match=rf"input 'b' of run changed since .*{before} then, .* {after}"):
        search(resume="run")
    with pytest.raises(UsageError, match="input 'b' of run changed"):
        main_debug("run", "trial-0")
    shutil.rmtree(kept)
    with pytest.raises(DataError, match=r"run cannot go on: The input 'b' is missing"):
        search(resume="run")
    shutil.move("before", kept)
    main_debug("run", "trial-0")
    result = search(resume="run")
    assert len(result.select) == 2
    assert not result.interrupted


def main_debug(run: str, job: str) -> None:
    from autopeft.search.controller.rerun import prepare_rerun

    again = prepare_rerun(load_run(run), job).run(lambda step, loss: None)
    (record,) = (r for r in load_run(run).trials().records if f"trial-{r.number}" == job)
    assert again.scores == record.scores


def test_a_space_that_does_not_fit_leaves_no_run_behind(arguments: dict[str, Any]) -> None:
    Path("space.yaml").write_text(SPACE.replace("rank: 2", "rank: {choice: [2, 3]}"))
    with pytest.raises(UsageError, match=r"layers\[0\]\.attach\[0\] of space 'starts'.*shape"):
        search(**arguments)
    altered("source/winner")
    Path("space.yaml").write_text(SPACE)
    weights = Path("source/winner/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UsageError, match=r"weights\.safetensors"):
        search(**arguments)
    assert not Path("run").exists()


@pytest.mark.slow
def test_a_recipe_with_inputs_is_tried_first(arguments: dict[str, Any]) -> None:
    """By its content: what the recipe calls `mine` is what the space calls `c`."""
    tree = {
        "inputs": {"mine": {"run": "night"}},
        "layers": [{"attach": [{**LORA, "from": "mine", "frozen": True}]}],
    }
    Path("mine.yaml").write_text(Recipe.from_dict(tree).to_yaml())
    result = search(**{**arguments, "warm_start": ["mine.yaml"], "trials": 1})
    (entry,) = Recipe.from_dict(dict(result.trials[0].recipe)).entries()
    assert (entry.item.start, entry.item.frozen) == (("c",), True)
    again = search(**{**arguments, "warm_start": ["run"], "trials": 1, "out": "again", "seed": 1})
    assert again.trials[0].recipe["layers"] == result.winner.to_dict()["layers"]


def test_a_dry_run_names_the_inputs(arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", arguments["task"], "--text", "body", "--label", "verdict", "--budget", "20%"]
    more = ["--model", arguments["model"], "--space", "space.yaml", "--max-length", "16", "--pooling", "own"]
    assert main(["search", *words, *more, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "input b" in told
    assert "'kept' of the bank" in told


@pytest.mark.slow
def test_both_executors_start_from_the_same(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Through the command line, with workers of Ray and in one process; trials and winner are the same."""
    given = [
        "--task",
        arguments["task"],
        "--text",
        "body",
        "--label",
        "verdict",
        "--model",
        arguments["model"],
    ]
    given += ["--budget", "20%", "--space", "space.yaml", "--trials", "4", "--steps", "12", "--seed", "3"]
    given += ["--fidelity", "none", "--baselines", "none", "--max-length", "16", "--batch-size", "8"]
    given += ["--no-portfolio", "--pooling", "own", "--precision", "fp32"]
    found = []
    for workers in ("0", "1"):
        words = [*given, "--workers", workers, "--out", f"w{workers}"]
        done = subprocess.run(
            [sys.executable, "-m", "autopeft", "search", *words],
            cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Input " in done.stdout
        run = load_run(tmp_path / f"w{workers}")
        found.append([(r.recipe, r.scores, r.train_loss) for r in run.trials().records])
    assert found[0] == found[1]
    weights = [load_file(tmp_path / f"w{n}/winner/weights.safetensors") for n in (0, 1)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "debug", str(tmp_path / "w1"), "trial-0"],
        cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

"""The main job from outside, on a backbone so small that Ray's start is most of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run
from support.saved_model import save_backbone, write_reviews

from autopeft.effort import EFFORTS

pytestmark = pytest.mark.slow

DATA = ["--task", "reviews.csv", "--text", "body", "--label", "verdict"]
SEARCH = [
    *("search", *DATA, "--model", "bert", "--space", "lora"),
    *("--budget", "20%", "--max-length", "24", "--workers", "1", "-o", "run"),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    return tmp_path


def test_it_finds_compares_and_says_what_to_type_next(place: Path) -> None:
    out = run(place, *SEARCH, "--trials", "3", "--steps", "10").stdout
    for word in ("Winner: trial", "LoRA rank", "head only", "±", "accuracy", "autopeft export run"):
        assert word in out
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["counts"]["share"] <= 0.2
    assert len(result["test"]) == EFFORTS["quick"].seeds
    for argv in (
        ["export", "run", "-o", "winner"],
        ["train", "--recipe", "winner/recipe.yaml", *DATA, "--model", "bert", "--steps", "2", "-o", "again"],
        ["predict", "winner", "--text", "a great film"],
    ):
        run(place, *argv)


def test_prompts_are_searched_beside_lora_and_adapters_under_a_tenth_of_a_percent(tmp_path: Path) -> None:
    """The space `prompts` on a real backbone and task: what is tried, what is returned, and its report."""
    argv = ["search", "--model", "minilm", "--task", "trec", "--space", "prompts", "--budget", "0.1%"]
    argv += ["--trials", "6", "--steps", "40", "--workers", "1", "-o", "run"]
    run(tmp_path, *argv)
    run(tmp_path, "report", "run", "-o", "report.html")
    trials = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    trained = [t for t in trials if t["state"] == "complete"]
    assert len(trained) >= 6
    assert max(t["counts"]["share"] for t in trained) <= 0.001
    tried = {name for t in trained for name in ("lora", "parallel_adapter", "prompt_tuning", "smop", "lpt",
             "prefix_propagation", "p_tuning_v2") if f'"{name}"' in json.dumps(t["recipe"])}  # fmt: skip
    assert {"lora", "parallel_adapter"} < tried, "and prompts"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["counts"]["share"] <= 0.001
    assert all(0.5 < score < 1 for score in result["test"]), (
        "of six classes, the largest of which has a fifth"
    )
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in tried)


def test_ctrl_c_keeps_and_prints_the_best_so_far(place: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "autopeft", *SEARCH, "--trials", "500", "--steps", "10"],
        cwd=place,
        env={**os.environ, "AUTOPEFT_CACHE": str(place / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("trial 1:"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "interrupted" in out
    assert "Winner: trial" in out
    assert "none on test" in out
    assert (place / "run" / "recipe.yaml").is_file()
    assert json.loads((place / "run" / "result.json").read_text())["interrupted"] is True

"""A package with a method, a composition, a sampler, a strategy, a stage and a kind of task, all used
together from the command line: a search is interrupted, goes on, and is reported."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.installing import environment, install
from support.saved_model import BAD, GOOD, NEUTRAL, save_backbone

SPACE = """\
autopeft: 2
name: mixed
layers:
  - at: all
    attach:
      - toy_mean:
          - lora: {rank: {choice: [1, 2, 4, 8]}, sites: [q, v]}
          - toy: {scale: {float: [0.1, 10.0], log: true}, sites: [q, v]}
training: {learning_rate: {float: [1.0e-3, 1.0e-1], log: true}}
"""
TRIALS, STEPS = 10, 60
OPTIONS = [
    *("--budget", "6%", "--task", "rows.csv", "--text", "body", "--label", "liked", "--kind", "toy"),
    *("--model", "bert", "--space", "space.yaml", "--strategy", "toy", "--sampler", "toy"),
    *("--trials", str(TRIALS), "--steps", str(STEPS), "--workers", "1", "--baselines", "head"),
    *("--max-length", "24", "--batch-size", "16", "--out", "found"),
]


def write_rows(path: Path, rows: int = 120) -> None:
    """A CSV with `body` and `liked`, the share of the opinions in it that are good."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "liked"])
        for i in range(rows):
            good, of = i % 7, 6
            words = [
                *draw.choices(NEUTRAL, k=3),
                *draw.choices(GOOD, k=good),
                *draw.choices(BAD, k=of - good),
            ]
            draw.shuffle(words)
            writer.writerow([" ".join(words) + " the" * (i // 7), round(good / of, 3)])


def write_lengths(path: Path, rows: int = 90) -> None:
    """A CSV with `body` and `share`: how many of up to nine words it has."""
    draw = random.Random(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "share"])
        for i in range(rows):
            words = draw.choices((*NEUTRAL, *GOOD, *BAD), k=1 + i % 9)
            writer.writerow([" ".join(words), round((1 + i % 9) / 9, 3)])


class Shell:
    """Runs `autopeft` in processes of their own."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self.environment = environment(target, AUTOPEFT_CACHE=str(folder / "cache"))

    def start(self, *words: str, module: str = "autopeft") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def said(self, *words: str, module: str = "autopeft") -> str:
        done = self.start(*words, module=module)
        out, error = done.communicate(timeout=400)
        assert done.returncode == 0, out + error
        return " ".join(out.split())

    def lines(self, name: str, run: str = "found") -> list[dict[str, Any]]:
        path = self.folder / run / name
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    target = install(Path(__file__).parent / "toys", tmp_path_factory.mktemp("installed"))
    folder = tmp_path_factory.mktemp("place")
    save_backbone(folder / "bert")
    write_rows(folder / "rows.csv")
    write_lengths(folder / "lengths.csv")
    (folder / "space.yaml").write_text(SPACE)
    return Shell(folder, target)


@pytest.mark.slow
def test_each_part_is_listed_and_explained(shell: Shell) -> None:
    method = json.loads(shell.said("methods", "toy", "--json"))
    assert method["summary"] == "A method: a trained vector that is added to what a site yields"
    assert "toy_mean — a composition: the mean of what its children add" in shell.said("methods", "toy_mean")
    assert "toy (a share between 0 and 1)" in shell.said("tasks")


@pytest.mark.slow
def test_a_search_is_interrupted_goes_on_and_is_reported(shell: Shell) -> None:
    running = shell.start("search", *OPTIONS)
    deadline = time.monotonic() + 300
    while len(shell.lines("trials.jsonl")) < 4 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, error = running.communicate(timeout=200)
    assert running.returncode == 130, out + error
    first = json.loads((shell.folder / "found/result.json").read_text())
    assert first["interrupted"]
    before = shell.lines("trials.jsonl")
    assert 4 <= len(before) < TRIALS, "it was not interrupted in time"
    assert not (shell.folder / "found/journal.log").exists()
    shell.said("report", "found")
    assert "Go on with it" in (shell.folder / "found/report.html").read_text()

    shell.said("search", "--resume", "found")
    result = json.loads((shell.folder / "found/result.json").read_text())
    trials = shell.lines("trials.jsonl")
    assert not result["interrupted"]
    assert trials[: len(before)] == before
    assert [t["number"] for t in trials] == list(range(TRIALS))
    assert {t["state"] for t in trials} == {"complete"}
    assert len({t["hash"] for t in trials}) == TRIALS
    assert {t["worker"] for t in trials[: len(before)]}.isdisjoint(t["worker"] for t in trials[len(before) :])
    # What the sampler proposes is the best so far but for one parameter, those of the earlier process too.
    for i in range(len(before), TRIALS):
        best = max(trials[:i], key=lambda t: t["score"])
        changed = [k for k, v in trials[i]["values"].items() if v != best["values"][k]]
        assert len(changed) <= 1, (i, changed)

    assert result["confirmed"]
    taught = [f for f in shell.lines("finals.jsonl") if f["label"].startswith("student")]
    assert [f["state"] for f in taught] == ["complete"] * len(taught)
    assert taught
    assert result["metric"] == "toy_closeness"
    assert result["comparisons"][0]["low"] is not None
    manifest = json.loads((shell.folder / "found/manifest.json").read_text())
    assert (manifest["arguments"]["strategy"], manifest["sampler"]) == ("toy", "toy")
    assert manifest["data"]["kind"] == "toy"
    assert "toy_mean" in json.dumps(result["recipe"])

    job = shell.said("debug", "found", "trial-1")
    assert f"select {trials[1]['scores']['select']:.4f}" in job, job

    assert "report.html" in shell.said("report", "found")
    page = (shell.folder / "found/report.html").read_text()
    for text in (
        "The strategy &#39;toy&#39; keeps no study",
        "--strategy toy",
        "--sampler toy",
        "--kind toy",
    ):
        assert text in page
    assert "--strategy toy" in page
    assert "optuna-dashboard" not in page
    good, bad = shell.said(
        "predict", "found", "--model", "bert", "--text", "good fine great good", "--text", "bad poor dull bad"
    ).split("%")[:2]
    assert int(good) > int(bad.split()[-1])


@pytest.mark.slow
def test_candidates_that_share_weights_are_searched_and_reported(shell: Shell) -> None:
    data = [*OPTIONS[: OPTIONS.index("--space")], *OPTIONS[OPTIONS.index("--workers") : -1], "shared"]
    shell.said("search", *data, "--space", "lora", "--strategy", "shared", "--steps", "40")
    result = json.loads((shell.folder / "shared/result.json").read_text())
    assert result["confirmed"]
    assert result["trials"]["estimated"] == 3
    assert json.loads((shell.folder / "shared/front.json").read_text()) == []
    assert "report.html" in shell.said("report", "shared")
    assert "estimated" in (shell.folder / "shared/report.html").read_text()
    lines = [json.loads(line) for line in (shell.folder / "shared/trials.jsonl").read_text().splitlines()]
    assert {line["state"] for line in lines} == {"estimated"}
    assert len({line["score"] for line in lines}) > 1


@pytest.mark.slow
def test_two_tasks_with_a_head_each_are_searched_together(shell: Shell) -> None:
    several = "autopeft_toys.several"
    running = shell.start("both", module=several)
    deadline = time.monotonic() + 300
    while len(shell.lines("trials.jsonl", "both")) < 2 and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=200)
    before = shell.lines("trials.jsonl", "both")
    assert 2 <= len(before) < 6, "it was not killed in time"

    shell.said("both", module=several)
    result = json.loads((shell.folder / "both/result.json").read_text())
    trials = shell.lines("trials.jsonl", "both")
    assert trials[: len(before)] == before
    assert len(trials) == 6
    assert result["confirmed"]
    assert result["metric"] == "mean_of_tasks"
    manifest = json.loads((shell.folder / "both/manifest.json").read_text())
    assert manifest["data"]["kind"].startswith("mixture?tasks=")
    assert "report.html" in shell.said("report", "both")
    page = (shell.folder / "both/report.html").read_text()
    assert [
        name
        for name in ("rows", "lengths", "toy_closeness", "Scores of the tasks on test")
        if name not in page
    ] == []

"""Searches whose trials have two processes each, on CPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.runs.folder import load_run
from autopeft.search.core.jobs import JobResult, TrainJob
from autopeft.search.execution import worker
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan

pytestmark = pytest.mark.slow

LORA = {"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}], "training": {"learning_rate": 0.01}}
FISH = {"name": "x", "layers": [{"attach": [{"fish_mask": {"keep": 20}}]}]}


def searched(folder: Path, *options: str) -> Any:
    """What the command line finds, in a folder that has backbone and data."""
    command = [
        *(sys.executable, "-m", "autopeft", "search", "--task", "reviews.csv", "--text", "body"),
        *(
            "--label",
            "verdict",
            "--model",
            "bert",
            "--space",
            "lora",
            "--budget",
            "20%",
            "--max-length",
            "24",
        ),
        *("--trials", "2", "--steps", "10", "--baselines", "none", "--no-shortcuts", "--precision", "fp32"),
        *("--final-precision", "fp32", *options),
    ]
    environment = {**os.environ, "AUTOPEFT_CACHE": str(folder / "cache")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done


def test_a_search_on_ray_finds_what_one_without_further_processes_finds(tmp_path: Path) -> None:
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    searched(tmp_path, "--workers", "0", "-o", "one")
    two = searched(tmp_path, "--workers", "1", "--processes-per-trial", "2", "-o", "two")
    assert "only methods that 2 processes can train are tried" in two.stderr + two.stdout
    one, both = ([*load_run(tmp_path / name).trials().records] for name in ("one", "two"))
    assert [r.state for r in both] == [r.state for r in one]
    assert [r.recipe for r in both] == [r.recipe for r in one]
    assert [r.train_loss for r in both] == pytest.approx([r.train_loss for r in one], abs=1e-5)
    assert [r.score for r in both] == pytest.approx([r.score for r in one])
    left = [p for p in psutil.process_iter(["cmdline"]) if "autopeft.training.peer" in str(p.info["cmdline"])]
    assert left == []


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model = str(save_backbone(tmp_path / "model"))
    task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
    plan = TrainingPlan(steps=1, batch_size=8, max_length=32, device="cpu", shortcuts=False)
    setup = WorkerSetup(model, resolve_model(model), task, plan, threads=2, key=str(tmp_path))
    yield replace(setup, processes=2)
    release()
    assert psutil.Process().children() == []


def run(
    setup: WorkerSetup, on_step: Any = lambda step, loss: None, stop: Any = bool, **more: Any
) -> JobResult:
    fields: dict[str, Any] = {"id": "j", "kind": "trial", "label": "x", "recipe": LORA, "steps": 6, **more}
    return execute(setup, TrainJob(**fields), on_step, stop)


def test_a_worker_trains_pauses_and_goes_on_as_in_one_process(setup: WorkerSetup) -> None:
    paused = run(setup, until=3)
    assert paused.paused
    rest = run(setup, files=paused.files)
    refused = run(setup, recipe=FISH)
    assert refused.failure == "failed"
    assert "fish_mask is calibrated on the whole backbone" in str(refused.error)
    (processes,) = worker._TOGETHER.values()
    assert processes.alive, "what all of them refuse costs no process"
    release()
    one = run(replace(setup, processes=1))
    assert rest.train_loss == pytest.approx(one.train_loss, abs=1e-5)
    assert rest.scores == one.scores


def test_a_job_whose_process_is_killed_is_lost_and_the_next_is_done(setup: WorkerSetup) -> None:
    def kill(step: int, loss: float) -> None:
        if step == 2:
            (other,) = psutil.Process().children()
            other.send_signal(signal.SIGKILL)

    lost = run(setup, kill)
    assert lost.failure == "lost"
    assert "Process 2 of the 2 of this training ended by signal 9" in str(lost.error)
    assert psutil.Process().children() == []
    assert run(setup).error is None


def test_a_job_that_is_stopped_ends_its_processes(setup: WorkerSetup) -> None:
    assert run(setup, stop=lambda: True).failure == "stopped"
    assert psutil.Process().children() == []

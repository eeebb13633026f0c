"""Searches whose trials have two processes each, on CPUs."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.saved_model import save_backbone, small_search, write_reviews

from autopeft.assets import resolve_model
from autopeft.search.api import search
from autopeft.search.core.jobs import JobResult, TrainJob
from autopeft.search.execution import worker
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan

pytestmark = pytest.mark.slow

LORA = {"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}], "training": {"learning_rate": 0.01}}
FISH = {"name": "x", "model": [{"fish_mask": {"keep": 20}}]}


def test_a_search_on_ray_finds_what_one_without_further_processes_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with shortcuts, as LoRA is on all layers, so that one process has no states stored."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    given = {"trials": 1, "steps": 6, "baselines": "none", "head_start": "random", "precision": "fp32"}
    arguments = small_search(tmp_path, **given)
    said: list[str] = []
    one = search(**{**arguments, "workers": 0, "out": tmp_path / "one"})
    both = search(**{**arguments, "workers": 1, "processes_per_trial": 2}, notify=said.append)
    assert [r.state for r in both.trials] == ["complete"]
    assert [r.recipe for r in both.trials] == [r.recipe for r in one.trials]
    for found, expected in zip(both.trials, one.trials, strict=True):
        assert found.train_loss == pytest.approx(expected.train_loss, abs=1e-5)
    assert both.test == pytest.approx(one.test)
    assert any("2 processes" in line for line in said)
    assert psutil.wait_procs(served(tmp_path / "cache"), timeout=20)[1] == []


def served(cache: Path) -> list[psutil.Process]:
    """The further processes of the trials that use this cache."""
    begun = "autopeft.training.processes import serve"
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment = process.info["environ"] or {}
        if begun in str(process.info["cmdline"]) and environment.get("AUTOPEFT_CACHE") == str(cache):
            found.append(process)
    return found


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
    assert "fish_mask" in str(refused.error)
    (processes,) = worker._PROCESSES.values()
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
    assert "signal 9" in str(lost.error)
    assert psutil.Process().children() == []
    assert run(setup).error is None


def test_a_job_that_is_stopped_ends_its_processes(setup: WorkerSetup) -> None:
    assert run(setup, stop=lambda: True).failure == "stopped"
    assert psutil.Process().children() == []

"""Runners by the type of a job."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.errors import UsageError
from autopeft.search.core.jobs import Job, JobResult, ScoreJob, TrainJob, UntrainedJob
from autopeft.search.execution import runners
from autopeft.search.execution.runners import JobContext, runner_of, runs
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.tasks import Split, load_task
from autopeft.training import TrainingPlan


@dataclass(frozen=True)
class CountJob(Job):
    """Count the rows and what the backbone says."""

    error: str = ""


def job(kind: type[Job] = CountJob, **more: Any) -> Job:
    return kind(**{"id": "j", "kind": "trial", "label": "x", "recipe": {}, **more})


@pytest.fixture(autouse=True)
def own_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "_RUNNERS", dict(runners._RUNNERS))


@pytest.fixture
def setup(tmp_path: Path) -> WorkerSetup:
    model = str(save_backbone(tmp_path / "model"))
    task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
    plan = TrainingPlan(steps=1, batch_size=8, max_length=32)
    return WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(tmp_path))


def answer(context: JobContext, job: CountJob) -> JobResult:
    for step in range(job.steps):
        context.on_step(step + 1, 0.5)
    if job.error:
        raise MemoryError(job.error)
    weight = next(context.backbone("fp32").parameters())
    assert context.backbone("bf16").dtype == torch.bfloat16
    scores = {
        "select": float(len(context.data.splits["train"])),
        "test": float(weight.isfinite().all()),
        "at once": float(context.plan.micro_rows),
    }
    return JobResult(job.id, scores)


def ran(setup: WorkerSetup, job: Job, stop: Callable[[], bool] = lambda: False) -> JobResult:
    return execute(setup, job, lambda step, loss: None, stop)


def test_a_job_of_ones_own_is_run_by_its_runner(setup: WorkerSetup) -> None:
    runs(CountJob)(answer)
    found = ran(setup, job())
    assert found.error is None
    assert found.scores == {"select": 96.0, "test": 1.0, "at once": 8.0}
    assert found.seconds > 0
    assert ran(setup, job(attempt=1)).scores["at once"] == 2.0


def test_what_it_raises_is_a_result_and_a_stop_leaves_it(setup: WorkerSetup) -> None:
    runs(CountJob)(answer)
    short = ran(setup, job(error="no room"))
    assert short.failure == "memory"
    told: list[int] = []
    stopped = execute(setup, job(steps=9), lambda step, loss: told.append(step), lambda: len(told) == 3)
    assert (stopped.failure, told) == ("stopped", [1, 2, 3])


def test_a_type_without_a_runner_is_named(setup: WorkerSetup) -> None:
    found = ran(setup, job())
    assert found.failure == "failed"
    assert f"no runner for jobs of the type {__name__}.CountJob: decorate one with @runs(CountJob)" in str(
        found.error
    )


def test_the_nearest_type_counts() -> None:
    @dataclass(frozen=True)
    class Longer(TrainJob):
        pass

    train = runner_of(TrainJob)
    assert runner_of(Longer) is train is not runner_of(ScoreJob)
    runs(Longer)(answer)
    assert runner_of(Longer) is answer
    assert runner_of(TrainJob) is train


def test_a_type_has_one_runner() -> None:
    runs(CountJob)(answer)
    runs(CountJob)(answer)  # as when a module is reloaded
    with pytest.raises(UsageError, match=rf"CountJob are run by {__name__}\.answer already"):
        runs(CountJob)(lambda context, job: JobResult(job.id))
    with pytest.raises(UsageError, match="derived from Job, but got <class 'int'>"):
        runs(int)  # type: ignore[arg-type]


def test_copies_contribute_as_one_whatever_the_job(setup: WorkerSetup) -> None:
    def doubled(split: Split) -> Split:
        return split.joined(replace(split, texts=[f" {text.upper()} ." for text in split.texts]))

    splits = {name: doubled(split) for name, split in setup.task.splits.items()}
    copied = replace(setup, task=replace(setup.task, splits=splits))
    recipe = {"name": "r", "layers": [{"attach": [{"lora": {"rank": 1}}]}]}
    both = {"splits": ("select", "test"), "recipe": recipe}
    trained = ran(copied, job(TrainJob, steps=1, keep_above=-1.0, **both))
    assert trained.error is None
    scored = ran(copied, job(ScoreJob, files=trained.files, recipe=recipe, splits=("test",)))
    untuned = ran(copied, job(UntrainedJob, **both))
    texts = {name: len(set(split.texts)) for name, split in setup.task.splits.items()}
    for found in (trained, scored, untuned):
        assert found.error is None
        assert len(found.pseudo_values) == texts["test"]
    for found in (trained, untuned):
        assert len(found.select_values) == texts["select"]
    assert scored.pseudo_values == trained.pseudo_values


MODULE = """
from dataclasses import dataclass
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.execution.runners import runs


@dataclass(frozen=True)
class FarJob(Job):
    pass


@runs(FarJob)
def run(context, job):
    return JobResult(job.id, {"select": 1.0})
"""
PROGRAM = """
import pickle, sys
from autopeft.search.execution.runners import runner_of

job = pickle.load(sys.stdin.buffer)
print(runner_of(type(job))(None, job).scores, job.seed)
"""


@pytest.mark.slow
def test_a_worker_that_unpickles_a_job_knows_its_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import far  # type: ignore[import-not-found]

    sent = pickle.dumps(replace(far.FarJob("j", "trial", "x", {}), seed=3))
    sys.modules.pop("far")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=sent, capture_output=True,
        env={"PYTHONPATH": str(tmp_path)}, timeout=120,
    )  # fmt: skip
    assert done.stdout.decode().strip() == "{'select': 1.0} 3", done.stderr.decode()

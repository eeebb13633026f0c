"""What a worker does with a job: one backbone and one encoded task for its whole life."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from autopeft.assets import ModelSource, dtype_of, map_weights, resolve_model
from autopeft.devices import accelerator, empty_cache, peak_memory
from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import FailureKind, Job, JobResult, Progress, ScoreJob, UntrainedJob
from autopeft.search.execution.deadline import within
from autopeft.search.execution.input_transfer import InputFiles
from autopeft.search.execution.model_transfer import local_source
from autopeft.search.execution.process import memory_text
from autopeft.search.execution.runners import JobContext, runner_of
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import use_metric
from autopeft.tasks.task import Task
from autopeft.training import NonFiniteLoss, TrainingPlan, ran_out_of_memory
from autopeft.training.processes import Processes, ProcessLost

__all__ = ["Loaded", "WorkerSetup", "execute", "loaded", "release", "run_job"]


@dataclass(frozen=True)
class WorkerSetup:
    """What all jobs of a run share.

    Attributes:
        model, source: the backbone as it was named, and where the driver found it.
        task: the rows to train on and to score.
        plan: how to train; each job sets its own steps and seed.
        threads: CPU threads of one job.
        key: digest of what decides the outcome. A worker keeps backbone and encoded data by it between jobs,
            so that a job carries a recipe, and weights only where it goes on from some.
        latency: whether runs after the search measure the time of a batch at inference.
        processes: of one job, among which the backbone's layers and the rows of a step are divided.
        inputs: what recipes start from.
    """

    model: str
    source: ModelSource
    task: Task
    plan: TrainingPlan
    threads: int
    key: str
    latency: bool = False
    processes: int = 1
    inputs: InputFiles = field(default_factory=dict, repr=False)


@dataclass
class Loaded:
    """What a worker keeps between jobs: the backbone in each precision so far, the encoded task, and what it
    was encoded with."""

    models: dict[str, Any]
    source: ModelSource
    data: EncodedTask
    tokenizer: Any = None

    def backbone(self, setup: WorkerSetup, precision: str = "fp32") -> Any:
        """The backbone in a precision, loaded when it is first needed."""
        if precision not in self.models:
            kind, dtype = setup.task.task_kind, dtype_of(precision)
            model = kind.head.load_model(self.source, setup.task.labels, seed=setup.plan.seed, dtype=dtype)
            map_weights(model)
            if setup.processes > 1:
                from autopeft.training.sharded import shard  # which takes seconds to import

                shard(model)
            self.models[precision] = model
        return self.models[precision]


_LOADED: dict[str, Loaded] = {}
_PROCESSES: dict[tuple[int, str], Processes] = {}  # of the jobs that have several


def loaded(setup: WorkerSetup) -> Loaded:
    """What the jobs of a setup share, loaded when it is first needed; only the latest setup's is kept."""
    if setup.task.own_metric is not None:  # it came with the task, from whoever began the search
        use_metric(setup.task.own_metric)
    if setup.key not in _LOADED:
        _LOADED.clear()
        source = local_source(setup.source)
        if source.origin != "hub" and not Path(source.path).exists():
            source = resolve_model(setup.model, quantize=setup.source.quantize)
        tokenizer = setup.task.task_kind.encoder.load_processor(source)
        data = encode(setup.task, tokenizer, setup.plan.max_length, learn_all=setup.plan.learn_all)
        _LOADED[setup.key] = Loaded({}, source, data, tokenizer)
    return _LOADED[setup.key]


def release() -> None:
    """Let go of the backbone and the data that are kept between jobs."""
    _LOADED.clear()
    _end_processes()
    gc.collect()


def _end_processes() -> None:
    while _PROCESSES:
        _PROCESSES.popitem()[1].close()


def _processes(setup: WorkerSetup) -> Processes:
    """The processes of this setup's jobs, started when they are first needed, and anew when they have ended:
    what was sharded over them is then of no use."""
    key = (setup.processes, setup.plan.torch_device().type)
    if key not in _PROCESSES or not _PROCESSES[key].alive:
        _end_processes()
        loaded(setup).models.clear()
        _PROCESSES[key] = Processes(setup.processes, device=key[1])
    return _PROCESSES[key]


class _Stopped(Exception):  # noqa: N818
    """Leaves a training at the next step; the trial cleans up on its way out."""


def execute(setup: WorkerSetup, job: Job, on_step: Progress, should_stop: Callable[[], bool]) -> JobResult:
    """Run a job and return its result; errors of the job are part of the result and never raised.

    After an error that is not the recipe's own, backbone and data are loaded anew for the next job. The
    process's number of threads is afterwards what it was.
    """
    start = time.perf_counter()
    notes: list[str] = []
    try:
        result = run_job(setup, job, on_step, should_stop, notes)
    except _Stopped:
        result = _failed(job, "The search was stopped while this ran.", "stopped")
    except ProcessLost as error:
        notes.append(_traceback(error))
        _LOADED.clear()
        result = _failed(job, str(error), "lost")
    except NonFiniteLoss as error:
        notes.append(_traceback(error))
        result = _failed(job, str(error), "non_finite")
    except Exception as error:
        notes.append(_traceback(error))
        result = _explained(job, error)
    if (device := accelerator()) is not None:
        if (peak := peak_memory(device)) is not None:
            notes.append(f"peak GPU memory of the process: {memory_text(peak)}")
        empty_cache(device)
    result.seconds = time.perf_counter() - start
    result.worker = f"{os.uname().nodename}:{os.getpid()}"
    result.log = "\n\n".join(notes)
    return result


def run_job(
    setup: WorkerSetup,
    job: Job,
    on_step: Progress,
    should_stop: Callable[[], bool],
    notes: list[str] | None = None,
) -> JobResult:
    """Run a job as `execute` does, but let its errors through.

    Where memory does not suffice, it is run once more with a quarter of the rows at once.

    Args:
        notes: takes the traceback of an error that was overcome.

    Raises:
        AutoPEFTError: the recipe cannot be trained, or its loss was not finite.
        Exception: any other error of the training.
    """
    with _threads(max(1, setup.threads // setup.processes)):
        try:
            return _run(setup, job, on_step, should_stop)
        except Exception as error:
            smallest = isinstance(job, ScoreJob | UntrainedJob) or micro_rows(setup.plan, job.attempt) == 1
            if smallest or not ran_out_of_memory(error):
                raise
            if notes is not None:
                notes.append(f"With fewer rows at once again, after this:\n{_traceback(error)}")
        # Past the handler, the frames that held the memory are gone.
        _LOADED.clear()
        gc.collect()
        empty_cache()
        return _run(setup, replace(job, attempt=job.attempt + 1), on_step, should_stop)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _traceback(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _explained(job: Job, error: Exception) -> JobResult:
    """The result of a job that an error ended."""
    short = ran_out_of_memory(error)
    if short or not isinstance(error, AutoPEFTError):
        _LOADED.clear()
    if short:
        return _failed(job, f"Out of memory: {error} Lower --batch-size or set --micro-batch.", "memory")
    if isinstance(error, AutoPEFTError):
        return _failed(job, str(error), "failed")
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} (at {Path(where.filename).name}:{where.lineno})"
    return _failed(job, text, "failed")


def micro_rows(plan: TrainingPlan, attempt: int) -> int:
    """Rows at once in the given attempt: a quarter of those of the attempt before."""
    return int(max(1, plan.micro_rows // 4**attempt))


def _failed(job: Job, error: str, failure: FailureKind) -> JobResult:
    return JobResult(job.id, error=error, failure=failure)


def _run(setup: WorkerSetup, job: Job, on_step: Progress, should_stop: Callable[[], bool]) -> JobResult:
    def step(number: int, loss: float) -> None:
        on_step(number, loss)
        if should_stop():
            raise _Stopped

    if setup.processes == 1:
        return _here(setup, job, step)
    others = replace(setup, source=loaded(setup).source)  # found, or brought here, by this process
    return _processes(setup).run(_elsewhere, others, job, here=partial(_here, setup, job, step))


def _elsewhere(setup: WorkerSetup, job: Job) -> JobResult:
    """A job in the processes beside the first, which alone tells of it."""
    with _threads(max(1, setup.threads // setup.processes)):
        return _here(setup, job, lambda step, loss: None)


def _here(setup: WorkerSetup, job: Job, step: Progress) -> JobResult:
    runner, kept, plan = runner_of(type(job)), loaded(setup), setup.plan
    if job.attempt:
        plan = replace(plan, micro_batch=micro_rows(plan, job.attempt))
    # One of several processes that gave up by a clock of its own would leave the others waiting.
    seconds = getattr(job, "within", None) if setup.processes == 1 else None
    with within(seconds, partial(kept.backbone, setup)) as backbone:
        context = JobContext(
            setup.task, kept.data, plan, backbone, step, setup.latency, kept.tokenizer, setup.inputs
        )
        result = runner(context, job)
    # A metric of the user's may give no finite number.
    bad = [f"{split}={score}" for split, score in result.scores.items() if not math.isfinite(score)]
    return _failed(job, f"The score is not finite: {', '.join(bad)}.", "non_finite") if bad else result

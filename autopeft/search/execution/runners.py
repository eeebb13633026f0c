"""What is done for each type of job: a runner, found by the job's type.

A strategy that needs another kind of work has a job type of its own and a runner in the same module, so that
a worker that unpickles the job has imported the runner with it:

```python
@dataclass(frozen=True)
class CountJob(Job):
    '''Count the words.'''


@runs(CountJob)
def count(context: JobContext, job: CountJob) -> JobResult:
    ...
```
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from autopeft.errors import DataError, UsageError
from autopeft.hybrid import Hybrid, attach, deployed_tensors
from autopeft.hybrid import load as load_hybrid
from autopeft.recipe import Recipe
from autopeft.resources.files import safetensors_bytes
from autopeft.resources.measuring import latency_of, typical_rows
from autopeft.search.core.jobs import (
    Job,
    JobResult,
    PrecisionJob,
    Progress,
    ScoreJob,
    TrainJob,
    UntrainedJob,
)
from autopeft.search.execution.input_transfer import InputFiles, opened
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.task import Task
from autopeft.training import Checkpoint, TrainingPlan, run_trial
from autopeft.training.forward import sharing_forward
from autopeft.training.loop import OnScore
from autopeft.training.precision import probe_precision
from autopeft.training.samples import Asked, asked_in
from autopeft.training.scoring import score_by_rows

__all__ = ["JobContext", "JobRunner", "runner_of", "runs", "train"]


@dataclass(frozen=True)
class JobContext:
    """What a runner is given beside its job.

    Attributes:
        task, data: the rows, as they were read and as the backbone takes them.
        plan: how to train; a job sets its own steps and seed. Of a job that ran out of memory before it takes
            fewer rows at once.
        backbone: the backbone in a precision (a job's own: `Job.precision`). It is kept for the next job,
            which has to find it as it was.
        on_step: to be told the number of each training step and its loss; it leaves the runner, by an
            exception that has to pass, once the search was stopped.
        latency: whether runs after the search measure the time of a batch at inference.
        tokenizer: of the backbone, where rows are made that `data` does not have.
        inputs: what recipes start from (see `input_transfer.opened`).
    """

    task: Task
    data: EncodedTask
    plan: TrainingPlan
    backbone: Callable[[str], Any]
    on_step: Progress
    latency: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None
    inputs: InputFiles = field(default_factory=dict)


JobRunner = Callable[[JobContext, Any], JobResult]
_RUNNERS: dict[type[Job], JobRunner] = {}
_R = TypeVar("_R", bound=JobRunner)


def runs(job_type: type[Job]) -> Callable[[_R], _R]:
    """Decorator that makes a function `(context, job) -> JobResult` the runner of a type of jobs.

    It also runs jobs of derived types that have no runner of their own. What it raises becomes the result of
    its job; a `non_finite` result is to be returned where a score is not finite.

    Raises:
        UsageError: it is no type of jobs, or another function runs it already.
    """
    if not (isinstance(job_type, type) and issubclass(job_type, Job)):
        raise UsageError(f"@runs takes a class derived from Job, but got {job_type!r}.")

    def enter(runner: _R) -> _R:
        there = _RUNNERS.get(job_type)
        if there is not None and _name(there) != _name(runner):
            raise UsageError(f"Jobs of the type {_name(job_type)} are run by {_name(there)} already.")
        _RUNNERS[job_type] = runner
        return runner

    return enter


def runner_of(job_type: type[Job]) -> JobRunner:
    """The runner of a type of jobs, or of the nearest type that it is derived from.

    Raises:
        UsageError: there is none.
    """
    for kind in job_type.__mro__:
        if kind in _RUNNERS:
            return _RUNNERS[kind]
    raise UsageError(
        f"There is no runner for jobs of the type {_name(job_type)}: decorate one with "
        f"@runs({job_type.__name__}) in the module that defines the type."
    )


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


@runs(TrainJob)
def _train(context: JobContext, job: TrainJob) -> JobResult:
    resume = None
    with contextlib.suppress(DataError):  # where its checkpoint is damaged, a paused trial begins again
        if job.files and "checkpoint" in job.files:
            resume = Checkpoint.from_bytes(job.files["checkpoint"])
    return train(context, job, resume=resume)


def train(
    context: JobContext,
    job: TrainJob,
    *,
    resume: Checkpoint | Callable[[Hybrid], Checkpoint] | None = None,
    policies: Sequence[Any] = (),
    seen: Callable[[Hybrid], None] = lambda hybrid: None,
    on_score: OnScore | None = None,
) -> JobResult:
    """Train a recipe from `resume` on, and score it.

    Args:
        resume, policies, on_score: see `run_trial`.
        seen: called with the hybrid where it was trained.
    """
    files: dict[str, bytes] = {}
    measured: dict[str, float] = {}
    plan = context.plan

    def keep(hybrid: Hybrid, scores: Mapping[str, float]) -> None:
        seen(hybrid)
        if job.kind in ("confirm", "baseline"):
            tensors = deployed_tensors(hybrid.modules, hybrid.head())
            measured["file"] = float(safetensors_bytes(tensors))
            if context.latency:
                rows = context.data.train.take(typical_rows(context.data.train, plan.batch_size))
                kind, device = context.task.task_kind, plan.torch_device()
                measured["latency"] = latency_of(hybrid.model, rows, kind, device)
        if job.keep_above is not None:
            with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
                hybrid.save(folder)
                saved = sorted(path for path in Path(folder).iterdir() if path.is_file())
                files.update({path.name: path.read_bytes() for path in saved})

    recipe = Recipe.from_dict(dict(job.recipe))
    with opened(recipe, context.inputs) as inputs:
        outcome = run_trial(
            context.backbone(job.precision),
            recipe,
            context.data,
            replace(plan, steps=job.steps, seed=job.seed, train_share=job.share),
            splits=job.splits,
            metric=job.metric,
            on_step=context.on_step,
            on_score=on_score,
            keep=keep,
            until=job.until,
            resume=resume,
            policies=policies,
            samples=job.samples,
            inputs=inputs,
        )
    scores = {k: float(v) for k, v in outcome.scores.items()}
    merit = _merit(job, outcome.losses.get("select"), outcome.calibrated_losses.get("select"))
    if job.keep_above is not None:
        rank = next(iter(scores.values())) if merit is None else merit
        if not rank > job.keep_above:
            files = {}
    if outcome.train.checkpoint is not None:
        files = {"checkpoint": outcome.train.checkpoint.to_bytes()}
    return JobResult(
        job.id,
        scores,
        train_loss=outcome.train.final_loss if outcome.train.steps else None,
        counts=outcome.counts.to_dict(),
        files=files,
        paused=outcome.train.stopped == "paused",
        pseudo_values=outcome.parts.get("test", ()),
        select_values=outcome.parts.get("select", ()),
        merit=merit,
        metric=job.metric,
        measured={**outcome.measured, **measured},
        samples=outcome.samples,
        by_task=outcome.by_task,
    )


def _merit(job: Job, loss: float | None, calibrated: float | None) -> float | None:
    """What a job's recipe is ranked by where that is one of its losses on *select*."""
    told = {"loss": loss, "calibrated-loss": calibrated}.get(job.rank_by)
    return -told if told is not None and math.isfinite(told) else None


@runs(ScoreJob)
def _score(context: JobContext, job: ScoreJob) -> JobResult:
    """Score the saved hybrid that came with the job."""
    if job.files is None:
        return JobResult(job.id, error="The trained weights of this run are gone.", failure="failed")
    with tempfile.TemporaryDirectory(prefix="autopeft-") as folder:
        for name, data in job.files.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        kind = context.task.task_kind
        # A job names splits that tasks have.
        splits = {name: context.data.splits[name] for name in job.splits}  # type: ignore[index]
        with load_hybrid(context.backbone(job.precision), folder) as hybrid:
            found = {
                split: score_by_rows(
                    hybrid.model,
                    rows,
                    _metric_of(context, job, split),
                    text_ids=context.task.text_ids(split),  # type: ignore[arg-type]
                    batch_size=context.plan.eval_rows,
                    device=context.plan.torch_device(),
                    forward=sharing_forward(hybrid, rows, kind),
                    loss=False,
                    asked=_asked(context, job, split),
                )
                for split, rows in splits.items()
            }
            scores = {split: scored.score for split, scored in found.items()}
            parts = found["test"].pseudo_values if "test" in found else ()
            counts = hybrid.counts().to_dict()
            return JobResult(
                job.id,
                scores,
                counts=counts,
                pseudo_values=parts,
                metric=job.metric,
                samples=found[job.splits[-1]].samples,
                by_task={split: scored.by_task for split, scored in found.items() if scored.by_task},
            )


def _asked(context: JobContext, job: Job, split: str) -> Asked | None:
    """What the rows of a job's last split ask, where it wants samples of the answers."""
    return asked_in(context.task, split) if job.samples and split == job.splits[-1] else None


@runs(UntrainedJob)
def _untrained(context: JobContext, job: UntrainedJob) -> JobResult:
    """Score the backbone as it is, on the rows of all other runs, with examples before them where asked."""
    kind, found = context.task.task_kind, {}
    with attach(context.backbone(job.precision), Recipe.from_dict({"name": "untuned"})) as hybrid:
        for split in job.splits:
            rows = _encoded(context, job, split)
            found[split] = score_by_rows(
                hybrid.model,
                rows,
                _metric_of(context, job, split),
                text_ids=context.task.text_ids(split),  # type: ignore[arg-type]
                batch_size=context.plan.eval_rows,
                device=context.plan.torch_device(),
                forward=sharing_forward(hybrid, rows, kind),
                loss=split == "select",  # nothing is ranked by others
            )
    select = found.get("select")
    parts = {split: scored.pseudo_values for split, scored in found.items()}
    return JobResult(
        job.id,
        {split: scored.score for split, scored in found.items()},
        counts=job.counts,
        pseudo_values=parts.get("test", ()),
        select_values=parts.get("select", ()),
        merit=None if select is None else _merit(job, select.loss, select.calibrated_loss),
        metric=job.metric,
    )


def _metric_of(context: JobContext, job: Job, split: str) -> str:
    """What scores a split of a job (see `Job.metric`)."""
    return context.task.metric if split == "test" else job.metric or context.task.metric


def _encoded(context: JobContext, job: UntrainedJob, name: str) -> EncodedSplit:
    """A split with the job's examples, drawn from train, before each row."""
    if not job.shots:
        return context.data.splits[name]  # type: ignore[index]  # a job names splits that tasks have
    task, kind, train = context.task, context.task.task_kind, context.task.splits["train"]
    assert context.tokenizer is not None
    drawn = np.random.default_rng(job.seed).permutation(len(train))[: job.shots]
    rows = kind.encoder.with_examples(
        task.splits[name],  # type: ignore[index]
        train.take(drawn),
        context.tokenizer,
        context.plan.max_length,
    )
    if rows is None:
        raise UsageError(f"Rows of {task.name!r} ask nothing, so that examples cannot stand before them.")
    return kind.encoder.encode(rows, context.tokenizer, context.plan.max_length)


@runs(PrecisionJob)
def _probe(context: JobContext, job: PrecisionJob) -> JobResult:
    found = probe_precision(context.backbone, context.data, replace(context.plan, seed=job.seed))
    return JobResult(job.id, measured={} if found is None else asdict(found))

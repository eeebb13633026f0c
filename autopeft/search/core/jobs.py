"""What travels between a search and its workers: jobs and their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from autopeft.runs.records import CountTable, JobKind, RecordState, Sample, TrialRecord

__all__ = [
    "DONE",
    "LOSS",
    "Done",
    "FailureKind",
    "Job",
    "JobResult",
    "JobSource",
    "PrecisionJob",
    "Progress",
    "ScoreJob",
    "TrainJob",
    "UntrainedJob",
    "tested_run",
    "testing_job",
]

LOSS = "loss"
"""The measure of what is ranked by one of its losses on *select* (see `Job.rank_by`)."""
FailureKind = Literal["non_finite", "memory", "failed", "lost", "stopped"]
Progress = Callable[[int, float], None]
_TESTING = "test-"


@dataclass(frozen=True)
class Job:
    """One piece of work for a worker. What is done is told by the type: `TrainJob`, `ScoreJob`, or one of a
    strategy's own, with a runner that workers find by it.

    Attributes:
        id: unique in a run.
        kind: what it is for: a search `trial`, a `confirm` run of a finalist, a `baseline` run, the `test`
            of trained weights, or a `probe` that measures something before the search.
        label: what a table shows (`trial 3`, `LoRA seed 2`).
        recipe: canonical recipe dict.
        seed: seeds head, modules and data order.
        steps: optimizer steps of the whole training; 0 where nothing is trained.
        splits: splits to score.
        number: the trial's number in its search, for kind `trial`.
        files: what the job starts from (file name to bytes): a saved hybrid, or the `checkpoint` of a trial
            that had paused.
        counts: the recipe's parameters, where they are known before it is built.
        attempt: how often the job was lost with its worker before; it then takes fewer rows at once.
        precision: of the backbone's weights.
        rank_by: what decides which recipe is better: `score`; `loss`, the mean loss over *select* rows; or
            `calibrated-loss` (see `Scorer.calibrated_loss`).
        metric: that scores *select*, where it is another than the task's (see `Scorer.trial_metric`).
            *Test* is always scored by the task's.
        samples: whether a handful of what the model writes is kept, of the last split.
    """

    id: str
    kind: JobKind
    label: str
    recipe: Mapping[str, Any] = field(repr=False)
    seed: int = 0
    steps: int = 0
    splits: tuple[str, ...] = ("select",)
    number: int | None = None
    files: Mapping[str, bytes] | None = field(default=None, repr=False)
    counts: CountTable | None = field(default=None, repr=False)
    attempt: int = 0
    precision: str = "fp32"
    rank_by: str = "score"
    metric: str | None = None
    samples: bool = False

    def __str__(self) -> str:
        return self.id

    def record(self, result: JobResult) -> TrialRecord:
        """The finished job as a line of `finals.jsonl`."""
        state: RecordState = "complete"
        if result.error is not None:
            state = "interrupted" if result.failure == "stopped" else "failed"
        return TrialRecord(
            kind=self.kind,
            label=self.label,
            state=state,
            recipe=self.recipe,
            number=self.number,
            seed=self.seed,
            steps=self.steps,
            counts=result.counts,
            score=result.score,
            scores=dict(result.scores),
            seconds=result.seconds,
            train_loss=result.train_loss,
            error=result.error,
            failure=result.failure,
            worker=result.worker,
            job=self.id,
            pseudo_values=list(result.pseudo_values) or None,
            select_values=list(result.select_values) or None,
            precision=self.precision,
            merits={} if result.merit is None else {str(self.steps): result.merit},
            metric=result.metric,
            measured=dict(result.measured) or None,
            samples=list(result.samples) or None,
            by_task=result.by_task,
        )


@dataclass(frozen=True)
class TrainJob(Job):
    """Train a recipe and score it.

    Attributes:
        keep_above: return the trained weights if the first score exceeds this; `None` for never.
        start: the step that an earlier part of this training ended at; 0 from the start.
        until: pause at this step and return a checkpoint; `None` to train to the end.
        share: of the training rows, to draw from.
        within: seconds in which it has to end, or it is given up and counts as failed; `None` for no limit.
    """

    keep_above: float | None = None
    start: int = 0
    until: int | None = None
    share: float = 1.0
    within: float | None = None


@dataclass(frozen=True)
class ScoreJob(Job):
    """Score the saved hybrid that is in `files`."""


@dataclass(frozen=True)
class UntrainedJob(Job):
    """Score the backbone as it is.

    Attributes:
        shots: rows of train before each prompt, drawn by the seed.
    """

    shots: int = 0


@dataclass(frozen=True)
class PrecisionJob(Job):
    """Measure whether the backbone trains faster in bf16 than in fp32, and how much rougher."""


@dataclass
class JobResult:
    """The result of a job. `error` is `None` exactly when every wanted split was scored with a finite number.

    Attributes:
        scores: split name to score.
        seconds: wall seconds in the worker, training and scoring.
        files: the saved hybrid, where the job asked to keep it, or the `checkpoint` of a paused trial.
        paused: whether the training stands at the job's `until`.
        pseudo_values: what groups of *test* rows contribute to the score there, where *test* was scored.
        select_values: the same of *select* rows.
        merit: what the recipe is ranked by, higher is better, where that is not its score on *select*.
        metric: of the score on *select*, where it is another than the task's.
        measured: numbers that a job measured, by name: what it took beside its parameters, as
            `Resources.to_dict()` has it (of a training `step_time` and `memory`, of a run after the search
            `file` and, where it is limited, `latency`), or what a probe found.
        samples: of what the model wrote, where the job asked for them.
        by_task: of a set of tasks, split to task to score, each in the task's own metric.
        log: text for whoever wants to know what happened: tracebacks, process, what was printed.
    """

    job: str
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    train_loss: float | None = None
    counts: CountTable | None = None
    error: str | None = None
    failure: FailureKind | None = None
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    worker: str = ""
    paused: bool = False
    pseudo_values: tuple[float, ...] = field(default=(), repr=False)
    select_values: tuple[float, ...] = field(default=(), repr=False)
    merit: float | None = None
    metric: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict, repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    by_task: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    log: str = field(default="", repr=False)

    @property
    def score(self) -> float | None:
        """Score on *select*, or `None`."""
        return None if self.error is not None else self.scores.get("select")

    @property
    def rank(self) -> float | None:
        """What the recipe is ranked by, higher is better: its merit, else its score."""
        return self.merit if self.error is None and self.merit is not None else self.score

    @property
    def ranked_by(self) -> str | None:
        """The measure of `rank`: `loss`, or a metric, `None` for the task's. Ranks of different measures are
        never compared."""
        return self.metric if self.merit is None else LOSS


class Done:
    """Type of `DONE`: no job will ever come again."""


DONE = Done()


class JobSource(Protocol):
    """Gives jobs to an executor and takes their results; it knows nothing of how they are run."""

    def next(self) -> Job | Done | None:
        """A job, `None` while results are awaited first, or `DONE`."""
        ...

    def progress(self, job: str, step: int, loss: float) -> None: ...

    def complete(self, result: JobResult) -> None: ...

    def interrupt(self) -> None:
        """Give out no more jobs; a second call ends those that run as well."""
        ...

    def scale(self, workers: int) -> None:
        """Told how many jobs run at a time: before the first is asked for, and when a cluster grows or
        shrinks."""
        ...

    @property
    def stopped(self) -> bool:
        """True once running jobs should be abandoned."""
        ...


def testing_job(run: str) -> str:
    """The job that scores the weights of a run on *test*."""
    return f"{_TESTING}{run}"


def tested_run(job: str) -> str:
    """The run whose weights a job scores; of another job, itself."""
    return job.removeprefix(_TESTING)

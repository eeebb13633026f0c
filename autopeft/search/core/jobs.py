"""What travels between the search, its workers and whoever watches: jobs, results, records and events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = [
    "DONE",
    "CountTable",
    "Done",
    "FailureKind",
    "Job",
    "JobKind",
    "JobResult",
    "JobSource",
    "Progress",
    "Reporter",
    "SearchInfo",
    "SilentReporter",
    "TrialRecord",
]

JobKind = Literal["trial", "confirm", "baseline", "test"]
FailureKind = Literal["non_finite", "memory", "failed", "lost", "stopped"]
RecordState = Literal["complete", "stopped", "paused", "failed", "duplicate"]
CountTable = dict[str, int | float]
Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Job:
    """One piece of work for a worker: train a recipe, or score a trained one.

    Attributes:
        id: unique in a run.
        kind: a search `trial`, a `confirm` run of a finalist, a `baseline` run, or the `test` of trained
            weights.
        label: what a table shows (`trial 3`, `LoRA seed 2`).
        recipe: canonical recipe dict.
        seed: seeds head, modules and data order.
        steps: optimizer steps of the whole training; 0 for `test`.
        until: pause at this step and return a checkpoint; `None` to train to the end.
        share: of the training rows, to draw from.
        splits: splits to score after training.
        keep_above: return the trained weights if the first score exceeds this; `None` for never.
        number: the study's trial number, for kind `trial`.
        files: saved hybrid (file name to bytes) to load instead of training, for kind `test`; for a trial
            that had paused, its `checkpoint`.
        attempt: how often the job was lost with its worker before; it then takes fewer rows at once.
    """

    id: str
    kind: JobKind
    label: str
    recipe: Mapping[str, Any] = field(repr=False)
    seed: int = 0
    steps: int = 0
    splits: tuple[str, ...] = ("select",)
    keep_above: float | None = None
    number: int | None = None
    files: Mapping[str, bytes] | None = field(default=None, repr=False)
    until: int | None = None
    share: float = 1.0
    attempt: int = 0

    def __str__(self) -> str:
        return self.id


@dataclass
class JobResult:
    """What came of a job. `error` is `None` exactly when every wanted split was scored with a finite number.

    Attributes:
        scores: split name to score.
        seconds: wall seconds in the worker, training and scoring.
        files: the saved hybrid, where the job asked to keep it, or the `checkpoint` of a paused trial.
        paused: whether the training stands at the job's `until`.
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
    log: str = field(default="", repr=False)

    @property
    def score(self) -> float | None:
        """Score on *select*, or `None`."""
        return None if self.error is not None else self.scores.get("select")


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

    def interrupt(self) -> None: ...

    def scale(self, workers: int) -> None:
        """Told how many jobs run at a time: before the first is asked for, and when a cluster grows or
        shrinks."""
        ...

    @property
    def stopped(self) -> bool:
        """True once running jobs should be abandoned."""
        ...


@dataclass(frozen=True)
class TrialRecord:
    """One finished piece of work, as it is written to `trials.jsonl` and `finals.jsonl`.

    Attributes:
        state: `complete`, `stopped` (at a rung, before all steps: never compared with full runs), `paused`
            (the same while it may still go on), `failed`, or `duplicate` (the score of an earlier trial was
            reused, nothing trained).
        job: the job's id, of runs after the search.
        score: on *select* after all steps.
        rungs: step to score on *select*, for each rung that a trial reached.
        steps: that were trained.
        hash: canonical hash of the recipe, training included.
        duplicate_of: number of the trial whose score was reused.
        values: the sampler's raw parameters, before repair.
        kept: the scores come from an earlier run, nothing was trained for this one.
    """

    kind: JobKind
    label: str
    state: RecordState
    recipe: Mapping[str, Any] = field(repr=False)
    number: int | None = None
    seed: int | None = None
    steps: int | None = None
    hash: str = ""
    counts: CountTable | None = None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    train_loss: float | None = None
    error: str | None = None
    failure: str | None = None
    duplicate_of: int | None = None
    values: Mapping[str, Any] | None = field(default=None, repr=False)
    worker: str = ""
    rungs: Mapping[str, float] = field(default_factory=dict)
    job: str = ""
    kept: bool = False


@dataclass(frozen=True)
class SearchInfo:
    """What a display needs before the first trial.

    Attributes:
        task, model, space, budget: names as given.
        limits: absolute lower and upper limit on deployed parameters.
        metric: name of the score, higher is better.
        trials, steps: planned number of trials and steps of each.
        jobs: planned number of all training runs, trials included.
        estimated_seconds: wall time of the whole run, estimated before it starts.
        notice: one line to show when the data is a stand-in, else `None`.
        run: path of the run folder.
    """

    task: str
    model: str
    space: str
    budget: str
    limits: tuple[int, int]
    metric: str
    trials: int
    steps: int
    jobs: int
    workers: int
    estimated_seconds: float
    notice: str | None
    run: str


class Reporter(Protocol):
    """Watches a search. All calls come from the driver's main thread, one at a time.

    `on_step` comes about once a second for each running job. `remaining` is the estimated time left in
    seconds, `None` until a first run has finished.
    """

    def on_start(self, info: SearchInfo) -> None: ...

    def on_phase(self, name: str, jobs: int) -> None: ...

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None: ...

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None: ...

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None: ...


class SilentReporter:
    """Shows nothing."""

    def on_start(self, info: SearchInfo) -> None:
        """Ignore the event."""

    def on_phase(self, name: str, jobs: int) -> None:
        """Ignore the event."""

    def on_trial_start(self, job: Job, counts: CountTable | None) -> None:
        """Ignore the event."""

    def on_step(self, job: Job, step: int, loss: float, remaining: float | None) -> None:
        """Ignore the event."""

    def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
        """Ignore the event."""

"""What a search tells those who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from autopeft.runs.records import CountTable, TrialRecord
from autopeft.search.core.jobs import Job
from autopeft.tasks.summary import DataSummary

__all__ = ["Reporter", "SearchInfo", "SilentReporter"]


@dataclass(frozen=True)
class SearchInfo:
    """What a display needs before the first trial.

    Attributes:
        task, model, space, budget: names as given.
        limits: absolute lower and upper limit on deployed parameters.
        metric: name of the score, higher is better.
        trial_metric: that of the trials, where it is another.
        outline: what the strategy will do.
        jobs: planned number of all training runs, trials included.
        workers: jobs at a time; `None` for as many as a cluster has room for.
        estimated_seconds: wall time of the whole run, estimated before it starts; with one worker where it is
            not known how many there will be.
        notice: one line to show when the data is a stand-in, else `None`.
        run: path of the run folder.
        data: what the rows are like.
    """

    task: str
    model: str
    space: str
    budget: str
    limits: tuple[int, int]
    metric: str
    outline: str
    jobs: int
    workers: int | None
    estimated_seconds: float
    notice: str | None
    run: str
    data: DataSummary = field(default_factory=DataSummary)
    trial_metric: str | None = None


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

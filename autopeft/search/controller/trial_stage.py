"""The stage of a strategy: its jobs, and the weights of the best candidate so far."""

from __future__ import annotations

from dataclasses import replace

from autopeft.runs.records import TrialRecord
from autopeft.search.controller.best_weights import BestWeights
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.core.stages import Priority, Room
from autopeft.search.strategies.contract import Strategy

__all__ = ["TrialStage"]


class TrialStage:
    """Gives the jobs of a strategy.

    Args:
        best: keeps the weights of the best trial.
    """

    priority = Priority.TRIALS

    def __init__(self, strategy: Strategy, best: BestWeights) -> None:
        self._strategy, self._best = strategy, best

    def next(self, room: Room) -> Job | None:
        """See `Stage`. A trial keeps its weights only where it beats the best so far."""
        if self._strategy.finished:
            return None
        job = self._strategy.next(room=room.for_candidate())
        if not isinstance(job, TrainJob):
            return job
        above = None if job.keep_above is None else max(job.keep_above, self._best.rank)
        return replace(job, keep_above=above, within=room.patience(job))

    def done(self, job: Job, result: JobResult) -> None:
        """See `Stage`."""
        self._best.offer(job, result)
        self._strategy.complete(job, result)

    def updates(self) -> list[TrialRecord]:
        """See `Stage`."""
        return self._strategy.updates()

"""What follows the search: finalists and baselines with fresh seeds, then the test of the winner.

Baseline sweeps may run while the last trials end; finalists are chosen when none is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from autopeft.effort import Effort
from autopeft.runs.records import RecordState, TrialRecord
from autopeft.search.core.jobs import Job, JobResult, ScoreJob
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import Contender, fresh_seeds
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_winner

__all__ = ["Confirmation", "retried"]


class Confirmation:
    """The jobs after the search, in the order in which they become possible.

    Args:
        baselines: what the winner is compared with.
        on_phase: is told the name of a phase and its number of jobs.

    Attributes:
        winner: the finalist that promises most on *select*, once all have ended.
    """

    def __init__(
        self, baselines: Sequence[Baseline], effort: Effort, seed: int, on_phase: Callable[[str, int], None]
    ) -> None:
        self.effort, self._seed, self._on_phase = effort, seed, on_phase
        self.races = [BaselineRuns(i, b) for i, b in enumerate(baselines)]
        self.finalists: list[Finalist] = []
        self.winner: Finalist | None = None
        self._queue: deque[Job] = deque()
        self._sweeping = self._open = self._testing = False

    def sweep(self) -> None:
        """Let the baselines' learning rates be tried; a second call changes nothing."""
        self._sweeping = True
        self.advance()

    @property
    def sweeps_left(self) -> int:
        """Sweep runs that have not ended."""
        return sum(race.sweep_left for race in self.races)

    def open(self, best: Sequence[TrialRecord], effort: Effort) -> None:
        """Retrain the best of the search; nothing follows where there are none."""
        self._open, self.effort = True, effort
        chosen = choose_finalists(best, effort.top)
        if not chosen:
            self._queue.clear()
            for race in self.races:
                race.started = True
            return
        self.finalists = [Finalist(r) for r in chosen]
        seeds = fresh_seeds(self._seed, effort.seeds)
        jobs = [job for f in self.finalists for job in f.jobs(seeds, effort.steps)]
        self._queue.extendleft(reversed(jobs))
        later = sum(race.later(effort.seeds) for race in self.races)
        self._on_phase("confirm", len(jobs) + self.sweeps_left + later)
        self.advance()

    def next(self) -> Job | None:
        """The next job that can run now."""
        return self._queue.popleft() if self._queue else None

    def again(self, job: Job) -> None:
        """Give a job out once more, before the others."""
        self._queue.appendleft(job)

    def clear(self) -> None:
        """Forget what was not begun."""
        self._queue.clear()

    def take(self, job: Job, result: JobResult) -> None:
        """Store what came of a job."""
        for race in self.races:
            if job.id in race.sweep:
                race.take_sweep(result)
            elif job.id in race.runs:
                race.take(result)
        for finalist in self.finalists:
            if job.id in finalist.runs:
                finalist.take(result)
        if job.kind == "test" and self.winner is not None:
            run = self.winner.runs[job.id.removeprefix("test-")]
            run.test, run.error = result.scores.get("test"), result.error or run.error
            run.pseudo_values = result.pseudo_values
        self.advance()

    def advance(self) -> None:
        """Open what has become possible."""
        for race in self.races:
            if self._sweeping and not race.swept:
                self._queue.extend(race.sweep_jobs(self._seed, self.effort.steps))
        if not self._open:
            return
        seeds = fresh_seeds(self._seed, self.effort.seeds)
        for race in self.races:
            if race.swept and not race.started:
                self._queue.extend(race.jobs(seeds, self.effort.steps))
        if not self._testing and self.finalists and all(f.complete for f in self.finalists):
            self._test()

    def _test(self) -> None:
        self._testing = True
        self.winner = winner = choose_winner(self.finalists)
        if winner is None:
            return
        jobs = [
            ScoreJob(
                id=f"test-{run.job}",
                kind="test",
                label=f"test of {winner.name}, seed {run.seed}",
                recipe=winner.recipe,
                seed=run.seed,
                splits=("test",),
                number=winner.number,
            )
            for run in winner.good
        ]
        self._on_phase("test", len(jobs))
        self._queue.extend(jobs)

    def baselines(self) -> list[Contender]:
        """Every baseline that has at least one run with a fresh seed."""
        return [race.contender() for race in self.races if race.runs]

    def record(self, job: Job, result: JobResult, *, kept: bool) -> TrialRecord:
        """A finished job as a record."""
        return TrialRecord(
            kind=job.kind,
            label=job.label,
            state=_state_of(result),
            recipe=job.recipe,
            number=job.number,
            seed=job.seed,
            steps=job.steps,
            counts=result.counts,
            score=result.score,
            scores=dict(result.scores),
            seconds=result.seconds,
            train_loss=result.train_loss,
            error=result.error,
            failure=result.failure,
            worker=result.worker,
            job=job.id,
            kept=kept,
            pseudo_values=list(result.pseudo_values) or None,
            precision=job.precision,
            merits={} if result.merit is None else {str(job.steps): result.merit},
            measured=dict(result.measured) or None,
        )


def _state_of(result: JobResult) -> RecordState:
    if result.error is None:
        return "complete"
    return "interrupted" if result.failure == "stopped" else "failed"


def retried(job: Job) -> Job:
    """The same job for another worker, with fewer rows at once."""
    return replace(job, attempt=job.attempt + 1)

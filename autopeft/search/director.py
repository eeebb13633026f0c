"""Decides what runs next: trials of the search, then finalists and baselines with fresh seeds, then the
test of the winner.

It knows neither Ray nor training: an executor asks it for jobs and brings results back. Phases overlap
where nothing forbids it, so that no worker waits: baseline sweeps fill the time while the last trials end.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from autopeft.search.baselines import Baseline
from autopeft.search.effort import Effort
from autopeft.search.forecast import Forecast
from autopeft.search.jobs import DONE, Done, Job, JobResult, Reporter, TrialRecord
from autopeft.search.selection import (
    BaselineRace,
    Contender,
    Finalist,
    choose_finalists,
    choose_winner,
    fresh_seeds,
)
from autopeft.search.study import SearchStudy

__all__ = ["Director", "Vault"]

_STUCK = 5


class Vault(Protocol):
    """Keeps the saved hybrids that may still be needed, by key."""

    def put(self, key: str, files: Mapping[str, bytes]) -> None: ...

    def get(self, key: str) -> Mapping[str, bytes] | None: ...


class Director:
    """A `JobSource` for one search.

    Args:
        study: proposals and their results.
        effort: numbers of trials, steps and seeds.
        baselines: what the winner is compared with.
        reporter: is told of everything that happens.
        vault: takes trained weights: `best` for the best trial so far, else by job.
        on_record: stores a record; called once for each finished trial and final run.
        seconds: time budget of the whole run, or `None`.
        workers: jobs that run at a time, for the forecast.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        study: SearchStudy,
        effort: Effort,
        baselines: Sequence[Baseline],
        reporter: Reporter,
        vault: Vault,
        on_record: Callable[[TrialRecord], None],
        *,
        seed: int,
        workers: int,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.effort = study, effort
        self._reporter, self.vault, self._on_record = reporter, vault, on_record
        self._seed = seed
        self.forecast = Forecast(effort, len(baselines), workers, seconds, clock)
        self.races = [BaselineRace(i, b) for i, b in enumerate(baselines)]
        self.finalists: list[Finalist] = []
        self.winner: Finalist | None = None
        self._running: dict[str, Job] = {}
        self._queue: deque[Job] = deque()
        self._launched = study.trained
        self._searching = True
        self._finals_open = False
        self._tests_open = False
        self.interrupted = False
        self.exhausted = False
        self.out_of_time = False
        self._best_kept = -math.inf
        self.kept: int | None = None
        self._failures_in_row = 0
        self.first_error: str | None = None

    def next(self) -> Job | Done | None:
        """See `JobSource`."""
        if self.interrupted:
            return DONE
        job = self._next_trial() if self._searching else None
        if job is None and not self._searching and self._queue:
            job = self._queue.popleft()
            if job.kind == "test":
                job = replace(job, files=self.vault.get(job.id.removeprefix("test-")))
        if job is None:
            return None if self._running or self._searching else DONE
        self._running[job.id] = job
        counts = self.study.get(job.number).counts if job.kind == "trial" and job.number is not None else None
        self._reporter.on_trial_start(job, counts)
        return job

    def _next_trial(self) -> Job | None:
        if not self._running and self._launched == 0:
            self._reporter.on_phase("search", self.effort.trials)
        if self._launched >= self.effort.trials or self._failures_in_row >= _STUCK:
            self._end_search()
            return None
        if not self.forecast.allows_trial(self._launched, len(self._running)):
            self.out_of_time = True
            self._end_search()
            return None
        proposal = self.study.propose()
        self._tell_duplicates()
        if proposal is None:
            self.exhausted = True
            self._end_search()
            return None
        self._launched += 1
        return Job(
            id=f"trial-{proposal.number}",
            kind="trial",
            label=f"trial {proposal.number}",
            recipe=proposal.recipe,
            seed=self._seed,
            steps=self.effort.steps,
            keep_above=self._best_kept,
            number=proposal.number,
        )

    def _end_search(self) -> None:
        self._searching = False
        if self._running or self.study.best():
            for race in self.races:
                self._queue.extend(race.sweep_jobs(self._seed, self.effort.steps))
        self._advance()

    def progress(self, job: str, step: int, loss: float) -> None:
        """See `JobSource`."""
        if job in self._running:
            self.forecast.progress(job, step)
            self._reporter.on_step(self._running[job], step, loss, self._remaining())

    def complete(self, result: JobResult) -> None:
        """See `JobSource`. A result that came already, or of a job that was never given, changes nothing."""
        job = self._running.pop(result.job, None)
        if job is None:
            return
        if result.error is None:
            self.forecast.finished(job, result.seconds)
        if job.kind == "trial" and job.number is not None:
            self._complete_trial(job.number, result)
        else:
            self._complete_final(job, result)
        self._advance()

    def _complete_trial(self, number: int, result: JobResult) -> None:
        if not self.study.record(number, result):
            return
        record = replace(self.study.get(number), seed=self._seed, steps=self.effort.steps)
        if record.state == "complete" and record.score is not None:
            self._failures_in_row = 0
            if record.score > self._best_kept and result.files:
                self.vault.put("best", result.files)
                self._best_kept, self.kept = record.score, number
        elif not self.interrupted:
            self._failures_in_row += 1
            self.first_error = self.first_error or record.error
        self._announce(record)
        self._tell_duplicates()

    def _complete_final(self, job: Job, result: JobResult) -> None:
        if result.files:
            self.vault.put(job.id, result.files)
        for race in self.races:
            if job.id in race.sweep:
                race.take_sweep(result)
            elif job.id in race.runs:
                race.take(result)
        for finalist in self.finalists:
            if job.id in finalist.runs:
                finalist.take(result)
        if job.kind == "test":
            self._take_test(job, result)
        self._announce(
            TrialRecord(
                kind=job.kind,
                label=job.label,
                state="complete" if result.error is None else "failed",
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
            )
        )

    def _take_test(self, job: Job, result: JobResult) -> None:
        if self.winner is not None:
            run = self.winner.runs[job.id.removeprefix("test-")]
            run.test, run.error = result.scores.get("test"), result.error or run.error

    def _announce(self, record: TrialRecord) -> None:
        self._on_record(record)
        best = self.study.best()
        self._reporter.on_trial_end(record, best[0].score if best else None, self._remaining())

    def _tell_duplicates(self) -> None:
        for record in self.study.take_duplicates():
            self._announce(replace(record, seed=self._seed, steps=self.effort.steps))

    def _advance(self) -> None:
        """Open what has become possible."""
        if self.interrupted or self._searching:
            return
        trials_run = any(j.kind == "trial" for j in self._running.values())
        if not self._finals_open and not trials_run:
            self._open_finals()
        # After the finals have opened: the time left may have taken seeds away.
        seeds = fresh_seeds(self._seed, self.effort.seeds)
        for race in self.races:
            if race.swept and not race.started and self._finals_open:
                self._queue.extend(race.jobs(seeds, self.effort.steps))
        if (
            self._finals_open
            and not self._tests_open
            and self.finalists
            and all(f.complete for f in self.finalists)
        ):
            self._open_tests()

    def _open_finals(self) -> None:
        self._finals_open = True
        sweeps = sum(j.kind == "baseline" for j in (*self._queue, *self._running.values()))
        self.effort = self.forecast.shrink(self.effort, sweeps)
        chosen = choose_finalists(self.study.best(2 * self.effort.top), self.effort.top)
        if not chosen:
            self._queue.clear()
            for race in self.races:
                race.started = True
            return
        self.finalists = [Finalist(r) for r in chosen]
        seeds = fresh_seeds(self._seed, self.effort.seeds)
        jobs = [job for f in self.finalists for job in f.jobs(seeds, self.effort.steps)]
        self._queue.extendleft(reversed(jobs))
        self._reporter.on_phase(
            "confirm", len(jobs) + len(self.races) * (self.effort.rates + self.effort.seeds)
        )

    def _open_tests(self) -> None:
        self._tests_open = True
        self.winner = choose_winner(self.finalists)
        if self.winner is None:
            return
        jobs = [
            Job(
                id=f"test-{run.job}",
                kind="test",
                label=f"test of {self.winner.name}, seed {run.seed}",
                recipe=self.winner.recipe,
                seed=run.seed,
                splits=("test",),
                number=self.winner.number,
            )
            for run in self.winner.good
        ]
        self._reporter.on_phase("test", len(jobs))
        self._queue.extend(jobs)

    def scale(self, workers: int) -> None:
        """See `JobSource`."""
        self.forecast.workers = max(workers, 1)

    def interrupt(self) -> None:
        """End as soon as possible, with what was found so far."""
        self.interrupted = True
        self._queue.clear()

    @property
    def stopped(self) -> bool:
        """See `JobSource`."""
        return self.interrupted

    @property
    def running(self) -> int:
        """Jobs that were given out and have not come back."""
        return len(self._running)

    def abandon(self) -> None:
        """Fail the trials that were still running when the executor ended."""
        for job in list(self._running.values()):
            stopped = JobResult(job.id, error="The search was stopped while this ran.", failure="stopped")
            self.complete(stopped)

    def baselines(self) -> list[Contender]:
        """Every baseline that has at least one run with a fresh seed."""
        return [race.contender() for race in self.races if race.runs]

    def _remaining(self) -> float | None:
        return self.forecast.remaining(self._launched, list(self._running.values()), self._searching)

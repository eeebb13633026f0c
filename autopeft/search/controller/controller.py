"""Decides what runs next: trials of the search from rung to rung, then what `finals` asks for.

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

from autopeft.effort import Effort
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.time_budget import TimeBudget
from autopeft.search.core.events import Reporter
from autopeft.search.core.jobs import DONE, Done, Job, JobResult
from autopeft.search.optimization.study import SearchStudy
from autopeft.search.optimization.successive_halving import Standing, SuccessiveHalving
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.confirmation import Confirmation, retried

__all__ = ["CheckpointStore", "Controller"]

_STUCK = 5
# A worker that dies with a job may have been killed by chance; one that dies three times was not.
_ATTEMPTS = 3
# Bytes that checkpoints of paused trials may take: for each planned trial, and in all at least; and how many
# are kept whatever they take.
_ROOM_EACH, _ROOM, _KEPT = 400_000, 40_000_000, 3


class CheckpointStore(Protocol):
    """Keeps the files that may still be needed, by key: saved hybrids, and checkpoints of paused trials."""

    def put(self, key: str, files: Mapping[str, bytes]) -> None: ...

    def get(self, key: str) -> Mapping[str, bytes] | None: ...

    def drop(self, key: str) -> None: ...

    @property
    def size(self) -> int:
        """Bytes of everything that is held."""
        ...


def _unknown(job: Job) -> JobResult | None:
    return None


class Controller:
    """A `JobSource` for one search.

    Args:
        study: proposals and their results; one that was opened anew goes on.
        effort: numbers of trials, steps and seeds.
        baselines: what the winner is compared with.
        reporter: is told of everything that happens.
        checkpoints: takes trained weights: `best` for the best trial so far, else by job; `trial-<n>` for the
            checkpoint of a paused trial.
        on_record: stores a record; called once for each finished trial and final run.
        recall: the result of a final run that need not be repeated.
        seconds: time budget of the whole run, or `None`.
        workers: jobs that run at a time, for the time_budget.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        study: SearchStudy,
        effort: Effort,
        baselines: Sequence[Baseline],
        reporter: Reporter,
        checkpoints: CheckpointStore,
        on_record: Callable[[TrialRecord], None],
        *,
        seed: int,
        workers: int,
        recall: Callable[[Job], JobResult | None] = _unknown,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.effort = study, effort
        self._reporter, self.checkpoints, self._on_record, self._recall = (
            reporter,
            checkpoints,
            on_record,
            recall,
        )
        self._seed = seed
        self.time_budget = TimeBudget(effort, baselines, workers, seconds, study.rungs, clock)
        self.finals = Confirmation(baselines, effort, seed, reporter.on_phase)
        self.halving = SuccessiveHalving(
            study.rungs, effort.trials, objectives=study.objectives, least=effort.top
        )
        self._running: dict[str, Job] = {}
        self._again: deque[Job] = deque()
        self._launched = study.trained
        self._searching, self._closing, self._announced = True, False, False
        self.interrupted = self.exhausted = self.out_of_time = False
        self._best_kept = -math.inf
        self.kept: int | None = None
        self._failures_in_row = 0
        self.first_error: str | None = None
        self._restore()

    def _restore(self) -> None:
        """Put the trials of an earlier process on the rungs that they had reached."""
        for record in [*self.study.records(), *self.study.paused.values()]:
            if record.state in ("complete", "paused") and record.number is not None:
                reached = sorted(map(int, record.rungs))
                for step, after in zip(reached, [*reached[1:], None], strict=True):
                    self._reach(record, step)
                    if after is not None:
                        self.halving.promote(record.number, step)

    def _reach(self, record: TrialRecord, step: int) -> None:
        size = int((record.counts or {}).get("deployed", 0))
        self.halving.reach(Standing(record.number or 0, record.rungs[str(step)], size), step)

    # Giving out
    # ---------------------------------------------------------------------------------------------------

    def next(self) -> Job | Done | None:
        """See `JobSource`."""
        while not self.interrupted:
            job = self._again.popleft() if self._again else None
            if job is None and self._searching:
                job = self._next_trial()
            if job is None and (self._closing or not self._searching):
                job = self.finals.next()
            if job is None:
                return None if self._running or self._searching else DONE
            if job.kind == "test":
                job = replace(job, files=self.checkpoints.get(job.id.removeprefix("test-")))
            known = None if job.kind == "trial" else self._recall(job)
            if known is not None:
                self._complete_final(job, known, kept=True)
                continue
            self._running[job.id] = job
            trial = job.kind == "trial" and job.number is not None
            counts = self.study.get(job.number or 0).counts if trial else None
            self._reporter.on_trial_start(job, counts)
            return job
        return DONE

    def _next_trial(self) -> Job | None:
        """A trial that goes on, a new one, or `None`, also while running ones may still be outdone."""
        if not self._announced:
            self._announced = True
            self._reporter.on_phase("search", self.effort.trials)
        found = self.halving.candidate(closing=self._closing)
        if found is None and not self._closing:
            job = self._new_trial()
            if job is not None:
                return job
            self._closing = True
            found = self.halving.candidate(closing=True)
        if found is not None:
            return self._continued(*found)
        if any(job.kind == "trial" for job in self._running.values()):
            self.finals.sweep()
            return None
        self._end_search()
        return None

    def _new_trial(self) -> Job | None:
        if self._launched >= self.effort.trials or self._failures_in_row >= _STUCK:
            return None
        if not self.time_budget.allows_trial(self._launched, len(self._running)):
            self.out_of_time = True
            return None
        proposal = self.study.propose()
        self._tell_duplicates()
        if proposal is None:
            self.exhausted = True
            return None
        self._launched += 1
        return self._leg(proposal.number, proposal.recipe, 0)

    def _continued(self, number: int, step: int) -> Job:
        self.halving.promote(number, step)
        files = self.checkpoints.get(f"trial-{number}")
        return replace(self._leg(number, self.study.get(number).recipe, step), files=files)

    def _leg(self, number: int, recipe: Mapping[str, object], step: int) -> Job:
        """The part of a trial from one rung (or the start, step 0) to the next."""
        rungs = self.study.rungs
        level = 0 if step == 0 else rungs.steps.index(step) + 1
        last = level == len(rungs.steps) - 1
        return Job(
            id=f"trial-{number}" if last and level == 0 else f"trial-{number}-{rungs.steps[level]}",
            kind="trial",
            label=f"trial {number}",
            recipe=recipe,
            seed=self._seed,
            steps=rungs.full,
            until=None if last else rungs.steps[level],
            share=rungs.shares[level],
            keep_above=self._best_kept if last else None,
            number=number,
        )

    def _end_search(self) -> None:
        self._searching = False
        for number in list(self.study.paused):
            self.checkpoints.drop(f"trial-{number}")
            self._announce(replace(self.study.stop(number), seed=self._seed))
        self._tell_duplicates()
        if self.study.best():
            self.finals.sweep()
        self.effort = self.time_budget.shrink(self.effort, self.finals.sweeps_left)
        self.finals.open(self.study.best(2 * self.effort.top), self.effort)

    # Taking back
    # --------------------------------------------------------------------------------------------------

    def progress(self, job: str, step: int, loss: float) -> None:
        """See `JobSource`."""
        if job in self._running:
            self.time_budget.progress(job, step)
            self._reporter.on_step(self._running[job], step, loss, self._remaining())

    def complete(self, result: JobResult) -> None:
        """See `JobSource`. A result that came already, or of a job that was never given, changes nothing.

        A job whose worker died is given out again, twice at most.
        """
        job = self._running.pop(result.job, None)
        if job is None:
            return
        if result.error is None:
            self.time_budget.finished(job, result.seconds)
        if result.failure == "lost" and job.attempt + 1 < _ATTEMPTS and not self.interrupted:
            self._again.append(retried(job))
        elif job.kind == "trial" and job.number is not None:
            self._complete_trial(job, job.number, result)
        else:
            self._complete_final(job, result, kept=False)

    def _complete_trial(self, job: Job, number: int, result: JobResult) -> None:
        if result.failure == "stopped" and number in self.study.paused:
            return  # it waits on its rung for a search that goes on
        if result.paused and job.until is not None:
            self._pause(job.until, number, result)
            return
        if not self.study.record(number, result):
            return
        self.checkpoints.drop(f"trial-{number}")
        record = replace(self.study.get(number), seed=self._seed)
        if record.state == "complete" and record.score is not None:
            self._failures_in_row = 0
            self._reach(record, self.study.rungs.full)
            if record.score > self._best_kept and result.files:
                self.checkpoints.put("best", result.files)
                self._best_kept, self.kept = record.score, number
        else:
            self.halving.drop(number)
            if not self.interrupted:
                self._failures_in_row += 1
                self.first_error = self.first_error or record.error
        self._announce(record)
        self._tell_duplicates()

    def _pause(self, step: int, number: int, result: JobResult) -> None:
        # The checkpoint first: a trial that the journal has on a rung can then go on from it.
        self.checkpoints.put(f"trial-{number}", result.files)
        if not self.study.pause(number, step, result):
            return
        self._failures_in_row = 0
        record = self.study.get(number)
        self._reach(record, step)
        for hopeless in self.halving.hopeless():
            self.checkpoints.drop(f"trial-{hopeless}")
        self._make_room()
        self._report(replace(record, seed=self._seed))

    def _make_room(self) -> None:
        """Let go of checkpoints of the trials least likely to go on; one that does all the same begins
        anew."""
        room = max(_ROOM, _ROOM_EACH * self.effort.trials)
        if self.checkpoints.size > room:
            for number in reversed(self.halving.queue()[_KEPT:]):
                self.checkpoints.drop(f"trial-{number}")
                if self.checkpoints.size <= room:
                    return

    def _complete_final(self, job: Job, result: JobResult, *, kept: bool) -> None:
        if result.files:
            self.checkpoints.put(job.id, result.files)
        self.finals.take(job, result)
        self._announce(self.finals.record(job, result, kept=kept))

    def _announce(self, record: TrialRecord) -> None:
        self._on_record(record)
        self._report(record)

    def _report(self, record: TrialRecord) -> None:
        best = self.study.best()
        self._reporter.on_trial_end(record, best[0].score if best else None, self._remaining())

    def _tell_duplicates(self) -> None:
        for record in self.study.take_duplicates():
            self._announce(replace(record, seed=self._seed))

    # The end
    # ------------------------------------------------------------------------------------------------------

    def scale(self, workers: int) -> None:
        """See `JobSource`."""
        self.time_budget.workers = max(workers, 1)

    def interrupt(self) -> None:
        """End as soon as possible, with what was found so far."""
        self.interrupted = True
        self._again.clear()
        self.finals.clear()

    @property
    def stopped(self) -> bool:
        """See `JobSource`."""
        return self.interrupted

    @property
    def running(self) -> int:
        """Jobs that were given out and have not come back."""
        return len(self._running)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.interrupted or self._searching or self._running)

    def abandon(self) -> None:
        """Fail the trials that were still running when the executor ended, but those that stand on a rung."""
        for job in list(self._running.values()):
            stopped = JobResult(job.id, error="The search was stopped while this ran.", failure="stopped")
            self.complete(stopped)

    def _remaining(self) -> float | None:
        return self.time_budget.remaining(self._launched, list(self._running.values()), self._searching)

"""Decides what runs next: a strategy's jobs, then finalists, baselines and the test of the winner.

It knows neither Ray nor training nor any strategy by name: an executor asks it for jobs and brings results
back. Phases overlap where nothing forbids it, so that no worker waits: baseline sweeps fill the time while
the last trials end.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from autopeft.effort import Effort
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.best_weights import BestWeights
from autopeft.search.controller.precision import ChosenPrecision
from autopeft.search.controller.time_budget import TimeBudget
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.events import Reporter
from autopeft.search.core.jobs import DONE, Done, Job, JobResult, TrainJob, tested_run
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.confirmation import Confirmation, retried
from autopeft.search.selection.finalists import choose_finalists
from autopeft.search.selection.finals import Finals, FinalWork
from autopeft.search.selection.verdicts import Judge
from autopeft.search.strategies.contract import Strategy

__all__ = ["Controller"]

# A worker that dies with a job may have been killed by chance; one that dies three times was not.
_ATTEMPTS = 3
_STOPPED = "The search was stopped while this ran."


def _unknown(job: Job) -> JobResult | None:
    return None


def _only_chooses(job: Job) -> bool:
    """Whether a job is a trial or belongs to a baseline's sweep: no figure that is reported comes from it."""
    return job.kind == "trial" or (job.kind == "baseline" and "test" not in job.splits)


class Controller:
    """A `JobSource` for one search.

    Args:
        strategy: gives the search's jobs and takes their results.
        effort: numbers of trials, steps and seeds.
        baselines: what the winner is compared with.
        reporter: is told of everything that happens.
        checkpoints: takes trained weights: `best-<n>` of the best trial so far, else by job. The best of an
            earlier process is known again.
        on_record: stores a record; called once for each finished trial and final run.
        recall: the result of a final run that need not be repeated.
        past: the final runs of an earlier process.
        seconds: time budget of the whole run, or `None`.
        spent: seconds of it that are gone.
        workers: jobs that run at a time, for the time budget.
        precision: of trials and of the baselines' sweeps, and of all else.
        rank_by: see `Job`.
        trial_metric: that scores *select*, where it is another than the task's.
        judge: which of what is confirmed wins; by default the best.
        test_share: rows of *test* for each of *select*, for the time budget.
        grace: seconds that jobs may go on after an interruption.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        strategy: Strategy,
        effort: Effort,
        baselines: Sequence[Baseline],
        reporter: Reporter,
        checkpoints: CheckpointStore,
        on_record: Callable[[TrialRecord], None],
        *,
        seed: int,
        workers: int,
        precision: ChosenPrecision | None = None,
        rank_by: str = "score",
        trial_metric: str | None = None,
        judge: Judge | None = None,
        recall: Callable[[Job], JobResult | None] = _unknown,
        past: Sequence[TrialRecord] = (),
        seconds: float | None = None,
        spent: float = 0.0,
        test_share: float = 1.0,
        grace: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.strategy, self.effort, self.checkpoints = strategy, effort, checkpoints
        self._reporter, self._on_record, self._recall = reporter, on_record, recall
        self._precision, self._seed = precision or ChosenPrecision(), seed
        self._rank_by, self.trial_metric = rank_by, trial_metric
        self.time_budget = TimeBudget(
            effort,
            workers,
            seconds,
            expected_steps=strategy.expected_steps,
            test_share=test_share,
            spent=spent,
            clock=clock,
        )
        self.time_budget.learn([*strategy.records(), *past])
        self._baselines, self._came, self.planned = baselines, dict[str, JobResult](), effort
        self._past = {record.job: record.kind for record in past if record.job is not None}
        self.confirmation = Confirmation(
            baselines,
            effort,
            seed,
            reporter.on_phase,
            judge=judge,
            has_weights=lambda job: job in checkpoints.keys(),  # noqa: SIM118 - a store is no mapping
        )
        self._running: dict[str, Job] = {}
        self._again: deque[Job] = deque()
        self._searching, self._announced = True, False
        self._grace, self._clock, self._until = grace, clock, math.inf
        self.interrupted = False
        self.first_error: str | None = None
        self.best = BestWeights(checkpoints, strategy.records())

    # Giving out
    # ------------------------------------------------------------------------------------------------------

    def next(self) -> Job | Done | None:
        """See `JobSource`."""
        while not self.interrupted:
            if self._precision.value is None:
                return self._probe()
            job = self._again.popleft() if self._again else None
            if job is None and self._searching:
                job = self._next_of_strategy()
            if job is None:
                job = self.confirmation.next(self._fits)
            if job is None:
                return None if self._running or self._searching else DONE
            job = self._measured_by(job)
            if job.kind == "test":
                job = replace(job, files=self.checkpoints.get(tested_run(job.id)))
            known = None if job.kind == "trial" else self._recall(job)
            if known is not None:
                self._complete_final(job, known, kept=True)
                continue
            self._running[job.id] = job
            self._reporter.on_trial_start(job, job.counts)
            return job
        return DONE

    def _measured_by(self, job: Job) -> Job:
        """The job with its precision and with what it is ranked by."""
        metric = self.trial_metric if "select" in job.splits else None
        precision = self.precision(final=not _only_chooses(job))
        return replace(job, rank_by=self._rank_by, precision=precision, metric=metric)

    def precision(self, *, final: bool) -> str:
        """What runs with fresh seeds compute in (`final`), or trials: `fp32` or `bf16`."""
        return self._precision.final if final else self._precision.value or self._precision.final

    def _probe(self) -> Job | None:
        """What the precision is chosen by; nothing else runs meanwhile."""
        if self._running:
            return None
        job = self._precision.job(self._seed)
        self._running[job.id] = job
        self._reporter.on_phase("precision", 1)
        return job

    def _next_of_strategy(self) -> Job | None:
        if not self._announced:
            self._announced = True
            self._reporter.on_phase("search", self.effort.trials)
            work = self._final_work()
            self.time_budget.expect(work.left(Finals(self.effort)), work.least(self.effort))
            first = self.confirmation.score_untuned()
            if first is not None:
                return first
        room = self.time_budget.allows(self.strategy.launched, len(self._running))
        job = self.strategy.next(room=room)
        self._take_updates()
        if isinstance(job, TrainJob) and job.keep_above is not None:
            job = replace(job, keep_above=max(job.keep_above, self.best.rank))
        if isinstance(job, TrainJob) and self.strategy.candidates(1):  # one has to be trained to the end
            job = replace(job, within=self.time_budget.within(self.strategy.launched, job))
        if job is None and self.strategy.finished:
            self._end_search()
        elif job is None:
            self.confirmation.sweep()
        return job

    def _end_search(self) -> None:
        self._searching = False
        if self.strategy.candidates(1):
            self.confirmation.sweep()
        work = self._final_work()
        finals = self.time_budget.shorten(work.forms(self.effort), work.left)
        self.effort = finals.effort
        # Those that cost least may be far from the best.
        self.confirmation.open(self.strategy.candidates(self.strategy.launched), finals)

    def _final_work(self) -> FinalWork:
        best = choose_finalists(self.strategy.candidates(self.strategy.launched), self.effort.top)
        known = best if self.confirmation.judge.cost is None else None
        return FinalWork(self._baselines, self._seed, self._known, self._past, known)

    def _known(self, job: Job) -> JobResult | None:
        """What came of a baseline's run, in this process or before."""
        return self._came.get(job.id) or self._recall(self._measured_by(job))

    def _fits(self, jobs: Sequence[Job]) -> bool:
        """Whether there is time for jobs that a search can do without: always for what is known."""
        unknown = [job for job in jobs if self._known(job) is None]
        return all(job.kind == "test" for job in unknown) or self.time_budget.fits(unknown)

    # Taking back
    # ------------------------------------------------------------------------------------------------------

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
        if result.failure == "lost" and self.interrupted:
            # The signal may have reached its worker too.
            result = replace(result, error=_STOPPED, failure="stopped")
        if job.kind == "probe":
            if result.failure != "stopped":
                self._precision.take(result)
            return
        if result.error is None:
            self.time_budget.finished(job, result.seconds, result.measured.get("step_time"))
        if result.failure == "lost" and job.attempt + 1 < _ATTEMPTS:
            self._again.append(retried(job))
        elif job.kind == "trial":
            self.best.offer(job, result)
            self.strategy.complete(job, result)
            self._take_updates()
            self.best.settle(self.strategy.records())
        else:
            self._complete_final(job, result, kept=False)

    def _take_updates(self) -> None:
        """Store and report what the strategy has learned."""
        for record in self.strategy.updates():
            if record.state == "failed" and not self.interrupted:
                self.first_error = self.first_error or record.error
            if record.state == "paused":
                self._report(record)
            else:
                self._announce(record)

    def _complete_final(self, job: Job, result: JobResult, *, kept: bool) -> None:
        if result.files:
            self.checkpoints.put(job.id, result.files)
        if result.failure != "stopped":  # what was cut off has not ended: it decides nothing
            self.confirmation.take(job, result)
            if job.kind == "baseline":
                self._came[job.id] = replace(result, files={})
        self._announce(self.confirmation.record(job, result, kept=kept))

    def _announce(self, record: TrialRecord) -> None:
        self._on_record(record)
        self._report(record)

    def _report(self, record: TrialRecord) -> None:
        best = self.strategy.candidates(1)
        self._reporter.on_trial_end(record, best[0].score if best else None, self._remaining())

    # The end
    # ------------------------------------------------------------------------------------------------------

    def scale(self, workers: int) -> None:
        """See `JobSource`."""
        self.time_budget.workers = max(workers, 1)

    def interrupt(self) -> None:
        """End with what was found so far: once the running jobs have ended, at a second call at once."""
        self._until = self._clock() + (0.0 if self.interrupted else self._grace)
        self.interrupted = True
        self._again.clear()
        self.confirmation.clear()

    @property
    def stopped(self) -> bool:
        """See `JobSource`."""
        return self.interrupted and (not self._running or self._clock() >= self._until)

    @property
    def running(self) -> int:
        """Jobs that were given out and have not come back."""
        return len(self._running)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.interrupted or self._searching or self._running)

    def abandon(self) -> None:
        """Give up what was still running when the executor ended; trials that stand on a rung stay there."""
        for job in list(self._running.values()):
            self.complete(JobResult(job.id, error=_STOPPED, failure="stopped"))

    def _remaining(self) -> float | None:
        left = self.strategy.steps_left if self._searching else None
        return self.time_budget.remaining(left, list(self._running.values()))

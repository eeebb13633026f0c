"""The loop of a search: asks its stages for jobs, in the order of their priority, and brings results back.

It knows neither Ray nor training nor any strategy by name: an executor asks it for jobs. Stages overlap where
nothing forbids it, so that no worker waits: baselines are swept while the last trials end.
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
from autopeft.search.controller.precision import PrecisionStage
from autopeft.search.controller.trial_stage import TrialStage
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.events import Reporter
from autopeft.search.core.jobs import DONE, Done, Job, JobResult, tested_run
from autopeft.search.core.stages import Stage
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import LOST
from autopeft.search.selection.finalists import choose_finalists
from autopeft.search.selection.finals import Finals, FinalWork
from autopeft.search.selection.stages import (
    STAGES,
    BaselineStage,
    FinalContext,
    FinalistStage,
    FinalStage,
    WinnerStage,
)
from autopeft.search.selection.time_budget import TimeBudget
from autopeft.search.selection.verdicts import Judge
from autopeft.search.strategies.contract import Strategy

__all__ = ["Controller"]

# A worker that dies with a job may have been killed by chance; one that dies three times was not.
_ATTEMPTS = 3
_STOPPED = "The search was stopped while this ran."


def _unknown(job: Job) -> JobResult | None:
    return None


class Controller:
    """A `JobSource` for one search, and the `Room` of its stages.

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
        precision: PrecisionStage | None = None,
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
        self._reporter, self._on_record, self._recall, self._seed = reporter, on_record, recall, seed
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
        self._results, self.planned = dict[str, JobResult](), effort  # of baselines' runs
        self._ended = {record.job for record in past if record.job is not None}
        self._plan = Finals(effort)
        self._left: tuple[Sequence[Job], Sequence[Job]] | None = None  # of the plan, and at least
        self.best = BestWeights(checkpoints, strategy.records())
        judge = judge or Judge()
        # Where cost decides, the other LoRAs may be finalists themselves.
        lost = LOST * judge.select.span if judge.cost is None else None
        on_phase = reporter.on_phase
        self._baselines = [
            BaselineStage(
                BaselineRuns(index, baseline, lost),
                effort,
                seed,
                awaited=baseline.kind in ("lora", "head") or (judge.cost is not None and not baseline.each),
                on_phase=on_phase,
            )
            for index, baseline in enumerate(baselines)
        ]
        finalists = FinalistStage(self._baselines, effort, seed, judge, on_phase)
        context = FinalContext(finalists, self._baselines, effort, seed, judge)
        self._finals: list[FinalStage] = [
            finalists,
            *(STAGES.find(name)(context) for name in strategy.finals),
        ]
        self.selection = WinnerStage(
            self._finals,
            self._baselines,
            effort,
            judge,
            on_phase,
            lambda job: job in checkpoints.keys(),  # noqa: SIM118 - a store is no mapping
        )
        self._precision = precision or PrecisionStage(seed=seed)
        self._trials = TrialStage(strategy, self.best)
        self.stages: list[Stage] = [self._precision, self._trials, *self._finals]
        self.stages += [*self._baselines, self.selection]
        self._running: dict[str, tuple[Job, Stage]] = {}
        self._again: deque[tuple[Job, Stage]] = deque()  # those of a worker that died
        self._searching, self._announced = True, False
        self._grace, self._clock, self._until = grace, clock, math.inf
        self.interrupted = False
        self.first_error: str | None = None

    # Giving out
    # ------------------------------------------------------------------------------------------------------

    def next(self) -> Job | Done | None:
        """See `JobSource`."""
        while not self.interrupted:
            found = self._again.popleft() if self._again else self._ask()
            if found is None:
                return None if self._running or self._searching else DONE
            job, stage = found
            job = self._measured_by(job)
            if job.kind == "test":
                job = replace(job, files=self.checkpoints.get(tested_run(job.id)))
            known = self._recall(job) if job.kind not in ("trial", "probe") else None
            if known is not None:
                self._take(job, known, stage, kept=True)
                continue
            self._running[job.id] = job, stage
            if stage is not self._precision:
                self._reporter.on_trial_start(job, job.counts)
            return job
        return DONE

    def _ask(self) -> tuple[Job, Stage] | None:
        """The next job of the first stage that has one."""
        if self._precision.value is None:  # nothing else runs beside what is timed
            job = None if self._running else self._precision.next(self)
            if job is None:
                return None
            self._reporter.on_phase("precision", 1)
            return job, self._precision
        if not self._announced:
            self._announced = True
            self._reporter.on_phase("search", self.effort.trials)
        for stage in sorted(self.stages, key=lambda stage: stage.priority):
            job = stage.next(self)
            self._store(stage)
            if job is not None:
                return job, stage
            if stage is self._trials and self._searching and self.strategy.finished:
                self._plan_finals()
        return None

    def _measured_by(self, job: Job) -> Job:
        """The job with its precision and with what it is ranked by."""
        if job.kind == "probe":
            return job
        metric = self.trial_metric if "select" in job.splits else None
        # No figure that is reported comes from a trial or from a baseline's sweep.
        chooses = job.kind == "trial" or (job.kind == "baseline" and "test" not in job.splits)
        precision = self.precision(final=not chooses)
        return replace(job, rank_by=self._rank_by, precision=precision, metric=metric)

    def precision(self, *, final: bool) -> str:
        """What runs with fresh seeds compute in (`final`), or trials: `fp32` or `bf16`."""
        return self._precision.final if final else self._precision.value or self._precision.final

    def _plan_finals(self) -> None:
        """Let the finals begin, as long as the time that is left allows."""
        self._searching = False
        work, best = self._final_work(), self.strategy.candidates(self.strategy.launched)
        forms = work.forms(self.effort, self.time_budget.seconds)
        self._plan = plan = self.time_budget.shorten(forms, work.jobs)
        self.effort, self._left = plan.effort, None
        if not best:
            self._close()
            return
        for stage in self._baselines:
            stage.open(plan)
        for final in self._finals:
            final.open(plan, best)
        races = [stage.runs for stage in self._baselines]
        runs = sum(
            race.sweep_left + (0 if race.started else race.baseline.fresh_runs(self.effort.seeds))
            for race in races
        )
        self._reporter.on_phase("confirm", min(self.effort.top, len(best)) * self.effort.seeds + runs)

    def _final_work(self) -> FinalWork:
        best = choose_finalists(self.strategy.candidates(self.strategy.launched), self.effort.top)
        known = best if self.selection.judge.cost is None else None
        baselines = [stage.runs.baseline for stage in self._baselines]
        return FinalWork(baselines, self._seed, self._known, self._ended, known)

    def _finals_left(self) -> tuple[Sequence[Job], Sequence[Job]]:
        """The jobs that are left after the trials, as planned and at least."""
        if self._left is None:
            work = self._final_work()
            self._left = work.jobs(self._plan), work.least(self._plan.effort, self.time_budget.seconds)
        return self._left

    def _known(self, job: Job) -> JobResult | None:
        """The result of a baseline's run, of this process or of an earlier one."""
        return self._results.get(job.id) or self._recall(self._measured_by(job))

    def for_candidate(self) -> bool:
        """See `Room`."""
        return self.time_budget.allows(self.strategy.launched, len(self._running), *self._finals_left())

    def patience(self, job: Job) -> float | None:
        """See `Room`."""
        if not self.strategy.candidates(1):  # one has to be trained to the end
            return None
        return self.time_budget.within(self.strategy.launched, job, self._finals_left()[0])

    def fits(self, jobs: Sequence[Job]) -> bool:
        """See `Room`; there always is time for what is known."""
        unknown = [job for job in [*jobs, *self.selection.needed] if self._known(job) is None]
        return all(job.kind == "test" for job in unknown) or self.time_budget.fits(unknown)

    # Taking back
    # ------------------------------------------------------------------------------------------------------

    def progress(self, job: str, step: int, loss: float) -> None:
        """See `JobSource`."""
        if job in self._running:
            self.time_budget.steps[job] = step
            self._reporter.on_step(self._running[job][0], step, loss, self._remaining())

    def complete(self, result: JobResult) -> None:
        """See `JobSource`. A result that came already, or of a job that was never given, changes nothing.

        A job whose worker died is given out again, twice at most.
        """
        if result.job not in self._running:
            return
        job, stage = self._running.pop(result.job)
        if result.failure == "lost" and self.interrupted:
            # The signal may have reached its worker too.
            result = replace(result, error=_STOPPED, failure="stopped")
        if result.error is None and job.kind != "probe":
            self.time_budget.finished(job, result.seconds, result.measured.get("step_time"))
        if result.failure == "lost" and job.kind != "probe" and job.attempt + 1 < _ATTEMPTS:
            # Another worker takes it, with fewer rows at once.
            self._again.append((replace(job, attempt=job.attempt + 1), stage))
        else:
            self._take(job, result, stage, kept=False)

    def _take(self, job: Job, result: JobResult, stage: Stage, *, kept: bool) -> None:
        """Bring a result to its stage; weights of trials are kept while they are the best."""
        if result.files and stage is not self._trials:
            self.checkpoints.put(job.id, result.files)
        if job.kind == "baseline" and result.failure != "stopped":
            self._results[job.id] = replace(result, files={})
        self._left = None
        if job.kind != "trial" and result.error is None:
            self._ended.add(job.id)
        stage.done(job, result)
        self._store(stage, kept=kept)
        if stage is self._trials:
            self.best.settle(self.strategy.records())

    def _store(self, stage: Stage, *, kept: bool = False) -> None:
        """Store and report what a stage has learned.

        Args:
            kept: whether it was known already.
        """
        for record in stage.updates():
            if record.kind == "trial" and record.state == "failed" and not self.interrupted:
                self.first_error = self.first_error or record.error
            record = replace(record, kept=True) if kept else record
            if record.state != "paused":
                self._on_record(record)
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
        self._close()

    def _close(self) -> None:
        for final in self._finals:
            final.close()
        for stage in (*self._baselines, self.selection):
            stage.close()

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
        for id in list(self._running):
            self.complete(JobResult(id, error=_STOPPED, failure="stopped"))

    def _remaining(self) -> float | None:
        left = self.strategy.steps_left if self._searching else None
        running = [job for job, _ in self._running.values()]
        return self.time_budget.remaining(left, running, *self._finals_left())

"""The stages after the trials: each baseline, the finalists with fresh seeds, and the test of the winner.

Baselines may be swept while the last trials end; all else waits until the plan of the finals is made.
Finalists of the goals smallest and cheapest wait for the sweeps too, which tell what has to be reached.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from autopeft.effort import Effort
from autopeft.errors import UsageError
from autopeft.plugins import Registry
from autopeft.runs.records import TrialRecord
from autopeft.search.core.goals import Goal
from autopeft.search.core.jobs import Job, JobResult, ScoreJob, TrainJob, tested_run, testing_job
from autopeft.search.core.stages import Priority, Room, Stage
from autopeft.search.optimization.pareto import best_first
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.contender import FreshRun, RepeatedRuns, fresh_seeds
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_frugal
from autopeft.search.selection.finals import Finals
from autopeft.search.selection.verdicts import Judge, Verdict, chosen, verdicts

__all__ = [
    "RETRAINED",
    "STAGES",
    "BaselineStage",
    "FinalContext",
    "FinalStage",
    "FinalistStage",
    "WinnerStage",
    "register_stage",
]

RETRAINED = "weights-"
"""Prefix of the job that trains a baseline's run again for its weights."""
_SPARES = 3  # finalists in the place of those that failed: where more fail, it is not the recipes' doing
OnPhase = Callable[[str, int], None]


class _Final:
    """What the stages here have in common: jobs that are ready, and a record of each that has ended."""

    def __init__(self, on_phase: OnPhase) -> None:
        self._on_phase = on_phase
        self._ready: deque[Job] = deque()
        self._records: list[TrialRecord] = []
        self._closed = False

    def close(self) -> None:
        """Give no more jobs; those that run may end."""
        self._closed = True
        self._ready.clear()

    def updates(self) -> list[TrialRecord]:
        """See `Stage`."""
        found, self._records = self._records, []
        return found


class BaselineStage(_Final):
    """A baseline: its sweep, then fresh seeds of the best, and of another LoRA where one of these is lost.

    Args:
        awaited: whether the winner is chosen when it has ended, as it decides as well.
        on_phase: is told the name of a phase and its number of jobs.

    Attributes:
        left_out: whether there was no time for it.
        swept_once: its name, where one seed alone chose among its candidates.
    """

    def __init__(
        self, runs: BaselineRuns, effort: Effort, seed: int, *, awaited: bool, on_phase: OnPhase
    ) -> None:
        super().__init__(on_phase)
        self.runs, self.awaited = runs, awaited
        self._steps, self._seed = effort.steps, seed
        self._seeds = fresh_seeds(seed, effort.seeds)
        self._others: Sequence[Job] = ()  # of another LoRA
        self._opened = self.left_out = False
        self.swept_once: str | None = None

    @property
    def priority(self) -> Priority:
        """The model as it is is scored before the trials: that tells how long answers to *test* take."""
        if self.runs.untuned and not self.runs.started:
            return Priority.FIRST
        if self._others:
            return Priority.OPTIONAL
        return Priority.AWAITED if self.awaited or self.runs.untuned else Priority.IDLE

    def open(self, plan: Finals) -> None:
        """Let fresh seeds follow the sweep."""
        self._opened, self._steps = True, plan.effort.steps
        self._seeds = fresh_seeds(self._seed, plan.effort.seeds)
        if self.runs.index in plan.left_out:
            self._leave_out()
        elif not plan.second and self.runs.shorten():
            self.swept_once = self.runs.name
        if self.runs.untuned:  # its score, which no seed changes, is shown for these seeds alone
            runs = self.runs.runs
            self.runs.runs = {job: run for job, run in runs.items() if run.seed in self._seeds}

    def _leave_out(self) -> None:
        self.left_out = True
        self._ready.clear()
        self.runs.leave_out()

    def next(self, room: Room) -> Job | None:
        """See `Stage`. What decides nothing comes only where there is time for it; without a run of its
        sweep, or without any, the baseline is left out."""
        if self._others and not self._ready and not self._closed:
            # Another LoRA is trained with all its seeds, or with none of them.
            others, self._others = self._others, ()
            if room.fits(others):
                self._on_phase("another LoRA", len(others))
                self._ready.extend(others)
            else:
                self.runs.drop_other("there was no time for")
        while not self._closed:
            if not self._ready and not self.left_out:
                if self.runs.untuned and not self.runs.started:
                    self._ready.extend(self.runs.jobs(self._seeds, 0))
                elif not self.runs.swept:
                    self._ready.extend(self.runs.sweep_jobs(self._seed, self._steps))
                elif self._opened and not self.runs.started:
                    self._ready.extend(self.runs.jobs(self._seeds, self._steps))
            if not self._ready:
                break
            job = self._ready.popleft()
            if self.priority is not Priority.IDLE or room.fits([job]):
                return job
            if job.id in self.runs.runs:
                self.runs.drop(job.id)
            if not self.runs.runs:
                self._leave_out()
        return None

    def done(self, job: Job, result: JobResult) -> None:
        """See `Stage`; what was cut off has not ended, and decides nothing."""
        self._records.append(job.record(result))
        if result.failure == "stopped":
            return
        self.runs.take(result)
        self._others = self._others or self.runs.other_jobs(self._seeds, self._steps)


class FinalStage(Stage, Protocol):
    """A stage between the trials and the test: its finalists, recipes with fresh seeds, may win."""

    finalists: list[Finalist]
    """That were trained so far, or are to be."""

    def open(self, plan: Finals, trials: Sequence[TrialRecord]) -> None:
        """Begin: the trials (best first) have ended.

        Args:
            plan: numbers of finalists and seeds, as far as there is time.
        """
        ...

    def close(self) -> None:
        """Give no more jobs; those that run may end."""
        ...

    @property
    def ended(self) -> bool:
        """Whether all of its finalists have ended and no other will come."""
        ...


class FinalistStage(_Final):
    """The best of the search, or the smallest or cheapest that may be within the margin, with fresh seeds.

    Attributes:
        finalists: that were chosen so far.
    """

    def __init__(
        self,
        baselines: Sequence[BaselineStage],
        effort: Effort,
        seed: int,
        judge: Judge,
        on_phase: OnPhase,
    ) -> None:
        super().__init__(on_phase)
        self._baselines, self._effort, self._seed, self._judge = baselines, effort, seed, judge
        self.finalists: list[Finalist] = []
        self._trials: Sequence[TrialRecord] = ()

    @property
    def priority(self) -> Priority:
        """A finalist in the place of those that failed comes last."""
        return Priority.FINALISTS if self._ready or not self.finalists else Priority.OPTIONAL

    def open(self, plan: Finals, trials: Sequence[TrialRecord]) -> None:
        """Train the best of `trials` (best first) again."""
        self._effort, self._trials = plan.effort, trials

    @property
    def ended(self) -> bool:
        """Whether all have ended, and none will take the place of those that failed."""
        return bool(self.finalists) and all(f.complete for f in self.finalists) and self._spare() is None

    def next(self, room: Room) -> Job | None:
        """See `Stage`."""
        first, new = not self.finalists, list[Finalist]()
        if first and self._trials and not self._closed:
            new = [Finalist(record) for record in self._choose()]
        elif not self._ready and (spare := self._spare()) is not None:
            new = [spare]
        seeds = fresh_seeds(self._seed, self._effort.seeds)
        jobs = [job for finalist in new for job in finalist.jobs(seeds, self._effort.steps)]
        if new and not first:
            if room.fits(jobs):
                self._on_phase("another finalist", len(jobs))
            else:
                self._closed, new, jobs = True, [], []
        self.finalists += new
        self._ready.extend(jobs)
        return self._ready.popleft() if self._ready else None

    def _choose(self) -> list[TrialRecord]:
        """What is trained again; nothing while a sweep decides that and has not ended."""
        judge, top = self._judge, self._effort.top
        if judge.cost is None:
            return choose_finalists(self._trials, top)
        races = [stage.runs for stage in self._baselines]
        if not all(race.swept for race in races):
            return []
        swept = {race.index: race.swept_candidates(self._effort.steps) for race in races if race.single}
        goal = max((found[0] for found in swept.values() if found), key=lambda r: r.rank or 0.0, default=None)
        goal = goal and replace(goal, step_cost=judge.cost_of_step(goal.recipe))
        # Candidates of the LoRA baseline that are not chosen for it may cost less.
        others = [
            replace(record, step_cost=judge.cost_of_step(record.recipe))
            for race in races
            if race.prior
            for record in swept[race.index][1:]
            if judge.inside(record.recipe)
        ]
        return choose_frugal(best_first([*self._trials, *others]), top, judge.cost, goal, judge.margin)

    def _spare(self) -> Finalist | None:
        """The best trial of those that are no finalists yet, where all finalists have ended and none has a
        score with each of its seeds."""
        failed = bool(self.finalists) and all(f.complete and not f.whole for f in self.finalists)
        if self._closed or not failed or self._judge.cost is not None:
            return None
        if len(self.finalists) >= self._effort.top + _SPARES:
            return None
        known = {finalist.number for finalist in self.finalists}
        ranked = choose_finalists(self._trials, len(self._trials))
        record = next((record for record in ranked if record.number not in known), None)
        return None if record is None else Finalist(record)

    def done(self, job: Job, result: JobResult) -> None:
        """See `Stage`."""
        self._records.append(job.record(result))
        if result.failure != "stopped":
            next(f for f in self.finalists if job.id in f.runs).take(result)


class WinnerStage(_Final):
    """Chooses the winner once all has ended that it is chosen by, and tests it.

    A baseline was tested with its runs. The run of its weights is trained again where it is known from an
    earlier search, which kept none.

    Args:
        has_weights: whether the weights of a run are kept, by its job.

    Attributes:
        baselines: what the winner is compared with.
        winner: the finalist, LoRA or the head alone, that reaches the goal on *select*.
        passed_over: what would have won and cannot be returned, as the training of its weights failed; and
            the error.
    """

    priority = Priority.TEST

    def __init__(
        self,
        finals: Sequence[FinalStage],
        baselines: Sequence[BaselineStage],
        effort: Effort,
        judge: Judge,
        on_phase: OnPhase,
        has_weights: Callable[[str], bool],
    ) -> None:
        super().__init__(on_phase)
        self._finals, self.baselines, self.judge = finals, baselines, judge
        self._steps, self._has_weights = effort.steps, has_weights
        self.winner: RepeatedRuns | None = None
        self.passed_over: list[tuple[RepeatedRuns, str]] = []
        self._chosen = False

    def next(self, room: Room) -> Job | None:
        """See `Stage`."""
        if not self._chosen and not self._closed and self._decided:
            winner = self._pick()
            if isinstance(winner, Finalist):
                self._ready.extend(self._tests(winner, winner.good))
            elif winner is not None and not self._has_weights(winner.good[0].job):
                best = winner.good[0]
                self._ready.append(
                    TrainJob(
                        id=f"{RETRAINED}{best.job}",
                        kind="confirm",
                        label=f"{winner.name}, seed {best.seed}, for its weights",
                        recipe=winner.recipe,
                        seed=best.seed,
                        steps=self._steps,
                        keep_above=-math.inf,
                        samples=True,
                    )
                )
            if self._ready:
                self._on_phase("test", len(self._ready))
        return self._ready.popleft() if self._ready else None

    @property
    def needed(self) -> list[Job]:
        """The tests that are still to be given out."""
        first = next(iter(self.finalists), None)
        return [] if self._chosen or first is None else self._tests(first, first.runs.values())

    @property
    def _decided(self) -> bool:
        awaited = (stage.runs.ended for stage in self.baselines if stage.awaited)
        return all(stage.ended for stage in self._finals) and all(awaited)

    def conclude(self) -> None:
        """Choose the winner where all has ended that it is chosen by but another LoRA or another finalist,
        which are given up."""
        for final in self._finals:
            final.close()
        for stage in self.baselines:
            stage.runs.drop_other("the search ended before")
        if not self._chosen and self._decided:
            self._pick()

    def _pick(self) -> RepeatedRuns | None:
        self._chosen = True
        failed = [side for side, _ in self.passed_over]
        self.winner = self.choose(lambda side: side not in failed)
        return self.winner

    def _tests(self, winner: RepeatedRuns, runs: Iterable[FreshRun]) -> list[Job]:
        return [
            ScoreJob(
                id=testing_job(run.job),
                kind="test",
                label=f"test of {winner.name}, seed {run.seed}",
                recipe=winner.recipe,
                seed=run.seed,
                splits=("test",),
                number=winner.number,
                samples=i == 0,  # of the run whose weights are kept
            )
            for i, run in enumerate(runs)
        ]

    def done(self, job: Job, result: JobResult) -> None:
        """See `Stage`."""
        self._records.append(job.record(result))
        if self.winner is None or result.failure == "stopped":
            return
        if job.kind == "test":
            run = self.winner.runs[tested_run(job.id)]
            run.test, run.error = result.scores.get("test"), result.error or run.error
            run.pseudo_values, run.samples = result.pseudo_values, result.samples
        else:
            self.winner.runs[job.id.removeprefix(RETRAINED)].samples = result.samples
            if result.error is not None:
                self.passed_over.append((self.winner, result.error))
                self._chosen = False  # the next best is asked for

    # Reading
    # ------------------------------------------------------------------------------------------------------

    @property
    def finalists(self) -> list[Finalist]:
        """All that were trained again."""
        return [finalist for stage in self._finals for finalist in stage.finalists]

    def verdicts(self, goal: Goal | None = None) -> list[Verdict]:
        """What is known of all that may win, what promises most first; where a goal is named, as if the
        search had it."""
        judge = self.judge if goal is None else replace(self.judge, goal=goal)
        return verdicts(self.finalists, [stage.runs for stage in self.baselines], judge)

    def choose(self, among: Callable[[RepeatedRuns], bool]) -> RepeatedRuns | None:
        """What reaches the goal of some of those that may win, else what promises most of them."""
        found = [verdict for verdict in self.verdicts() if among(verdict.runs)]
        verdict = chosen(self.judge.goal, found) or next(iter(found), None)
        return None if verdict is None else verdict.runs


# Stages of other packages
# ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinalContext:
    """What a final stage of another package is given.

    Attributes:
        finalists: the best of the search, with fresh seeds.
        baselines: what the winner is compared with.
        seed: the search's.
    """

    finalists: FinalistStage
    baselines: Sequence[BaselineStage]
    effort: Effort
    seed: int
    judge: Judge


STAGES: Registry[Callable[[FinalContext], FinalStage]] = Registry(
    error=UsageError,
    malformed="A stage's name is a lower-case identifier, but got {name!r}.",
    taken="The stage name {name!r} is taken by {by}.",
    unknown="There is no stage {name!r}.{near} Stages: {names}; one registers through the entry-point group "
    "'autopeft.stages'.",
    group="autopeft.stages",
)
_M = TypeVar("_M", bound=Callable[[Any], Any])


def register_stage(name: str) -> Callable[[_M], _M]:
    """Decorator of what makes a `FinalStage` from a `FinalContext`. A strategy asks for it by its name (see
    `StrategyClass.finals`).

    Raises:
        UsageError: the name is taken or malformed.
    """

    def enter(maker: _M) -> _M:
        STAGES.check_name(name, maker)
        STAGES.enter(name, maker)
        return maker

    return enter

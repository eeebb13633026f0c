"""What follows the search: finalists and baselines with fresh seeds, then the test of the winner.

Baseline sweeps may run while the last trials end; finalists are chosen when none is left. Small or cheap ones
wait for the sweeps too, which tell what has to be reached. What decides nothing comes last, as far as
there is time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from autopeft.effort import Effort
from autopeft.runs.records import RecordState, TrialRecord
from autopeft.search.core.goals import Goal
from autopeft.search.core.jobs import Job, JobResult, ScoreJob, TrainJob, tested_run, testing_job
from autopeft.search.optimization.pareto import best_first
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import LOST, Contender, FreshRun, RepeatedRuns, fresh_seeds
from autopeft.search.selection.finalists import Finalist, choose_finalists, choose_frugal
from autopeft.search.selection.finals import Finals
from autopeft.search.selection.verdicts import Judge, Verdict, best_baseline, chosen, verdicts

__all__ = ["Confirmation", "retried", "weights_job"]

_WEIGHTS = "weights-"
_SPARES = 3  # finalists in the place of those that failed: where more fail, it is not the recipes' doing


class Confirmation:
    """The jobs after the search, in the order in which they become possible.

    Args:
        baselines: what the winner is compared with.
        on_phase: is told the name of a phase and its number of jobs.
        judge: what recipes are judged by.
        has_weights: whether the weights of a run are kept, by its job.

    Attributes:
        winner: the finalist, LoRA or the head alone, that reaches the goal on *select*, once all have ended.
        passed_over: what would have won and cannot be returned, as the training of its weights failed; and
            the error.
        left_out: names of baselines for which there was no time.
        swept_once: names of those that one seed alone chose among.
    """

    def __init__(
        self,
        baselines: Sequence[Baseline],
        effort: Effort,
        seed: int,
        on_phase: Callable[[str, int], None],
        *,
        judge: Judge | None = None,
        has_weights: Callable[[str], bool] = lambda job: True,
    ) -> None:
        self.effort, self._seed, self._on_phase = effort, seed, on_phase
        self.judge, self._has_weights = judge or Judge(), has_weights
        # Where cost decides, the other LoRAs may be finalists themselves.
        lost = LOST * self.judge.select.span if self.judge.cost is None else None
        self.races = [BaselineRuns(i, b, lost) for i, b in enumerate(baselines)]
        self.finalists: list[Finalist] = []
        self.winner: RepeatedRuns | None = None
        self.passed_over: list[tuple[RepeatedRuns, str]] = []
        self.left_out: list[str] = []
        self.swept_once: list[str] = []
        self._trials: Sequence[TrialRecord] = ()
        self._queue: deque[Job] = deque()
        # What nothing waits for: it fills what a phase leaves idle at its end.
        self._at_leisure: deque[Job] = deque()
        # Of a LoRA in the place of one that lost a seed, or of a finalist in the place of those that failed:
        # the winner waits for it, where there is time for it.
        self._others: list[Job] = []
        self._spare: Finalist | None = None
        self._sweeping = self._open = self._testing = self._no_spare = False

    def score_untuned(self) -> Job | None:
        """The run of the model as it is, which needs nothing of a search: it tells how good that is, and how
        long answers to *test* take. `None` where there is no such baseline, or more than the first time."""
        race = next((race for race in self.races if race.untuned and not race.started), None)
        return None if race is None else race.jobs(fresh_seeds(self._seed, self.effort.seeds), 0)[0]

    def sweep(self) -> None:
        """Let the baselines' learning rates be tried; a second call changes nothing."""
        self._sweeping = True
        self.advance()

    def open(self, best: Sequence[TrialRecord], finals: Finals) -> None:
        """Retrain the best of the search; nothing follows where there are none."""
        effort = finals.effort
        self._open, self.effort, self._trials = True, effort, best
        for race in self.races:
            if race.index in finals.left_out:
                self._leave_out(race)
            elif not finals.second and race.shorten():
                self.swept_once.append(race.name)
            race.keep_seeds(fresh_seeds(self._seed, effort.seeds))
        if not best:
            self.clear()
            for race in self.races:
                race.started = True
            return
        later = sum(race.sweep_left + race.later(effort.seeds) for race in self.races)
        self._on_phase("confirm", min(effort.top, len(best)) * effort.seeds + later)
        self.advance()

    def _leave_out(self, race: BaselineRuns) -> None:
        self.left_out.append(race.name)
        for queue in (self._queue, self._at_leisure):
            kept = [job for job in queue if job.id not in race.sweep and job.id not in race.runs]
            queue.clear()
            queue.extend(kept)
        race.leave_out()

    def _choose_finalists(self) -> None:
        """Choose what is trained again, once all is known that decides it."""
        judge, effort = self.judge, self.effort
        if judge.cost is None:
            records = choose_finalists(self._trials, effort.top)
        elif not all(race.swept for race in self.races):
            return
        else:
            swept = [race.swept_candidates(effort.steps) for race in self.races if race.single]
            goal = max((found[0] for found in swept if found), key=lambda r: r.rank or 0.0, default=None)
            everything = best_first([*self._trials, *self._other_priors()])
            goal = goal and replace(goal, step_cost=judge.cost_of_step(goal.recipe))
            records = choose_frugal(everything, effort.top, judge.cost, goal, judge.margin)
        self.finalists = [Finalist(record) for record in records]
        seeds = fresh_seeds(self._seed, effort.seeds)
        jobs = [job for f in self.finalists for job in f.jobs(seeds, effort.steps)]
        self._queue.extendleft(reversed(jobs))

    def _other_priors(self) -> list[TrialRecord]:
        """Candidates of the LoRA baseline that are not chosen for it: they may cost less."""
        found = [
            record
            for race in self.races
            if race.prior
            for record in race.swept_candidates(self.effort.steps)[1:]
            if self.judge.inside(record.recipe)
        ]
        return [replace(r, step_cost=self.judge.cost_of_step(r.recipe)) for r in found]

    def next(self, fits: Callable[[Sequence[Job]], bool] = lambda jobs: True) -> Job | None:
        """The next job that can run now. What a search can do without comes when there is nothing else, and
        only where it `fits` into the time that is left: another LoRA, with the test that waits for it, and
        what decides nothing."""
        while self._queue or self._others or self._spare or self._at_leisure:
            if self._queue:
                return self._queue.popleft()
            if self._others:
                self._try_others(fits)
                continue
            if self._spare:
                self._try_spare(self._spare, fits)
                continue
            job = self._at_leisure.popleft()
            if fits([job]):
                return job
            self._do_without(job)
        return None

    def _try_others(self, fits: Callable[[Sequence[Job]], bool]) -> None:
        """Let another LoRA be trained with all its seeds, or none of them."""
        others, self._others = self._others, []
        first = self.finalists[0]
        if fits([*others, *self._tests(first, first.good)]):
            self._on_phase("another LoRA", len(others))
            self._queue.extend(others)
        else:
            for race in self.races:
                race.drop_other("there was no time for")
            self.advance()

    def _failed_finalists(self) -> bool:
        """Whether all finalists have ended and none has a score with each of its seeds."""
        return bool(self.finalists) and all(f.complete and not f.whole for f in self.finalists)

    def _next_best(self) -> Finalist | None:
        """The best trial of those that are no finalists yet, where none of these has all of its seeds."""
        if self._testing or self.judge.cost is not None or not self._failed_finalists():
            return None
        if len(self.finalists) >= self.effort.top + _SPARES:
            return None
        known = {finalist.number for finalist in self.finalists}
        left = choose_finalists(self._trials, len(self._trials))
        record = next((record for record in left if record.number not in known), None)
        return None if record is None else Finalist(record)

    def _try_spare(self, spare: Finalist, fits: Callable[[Sequence[Job]], bool]) -> None:
        """Let another finalist be trained with all its seeds, or none."""
        self._spare = None
        jobs = spare.jobs(fresh_seeds(self._seed, self.effort.seeds), self.effort.steps)
        if fits([*jobs, *self._tests(spare, spare.runs.values())]):
            self._on_phase("another finalist", len(jobs))
            self.finalists.append(spare)
            self._queue.extend(jobs)
        else:
            self._no_spare = True
            self.advance()

    def _do_without(self, job: Job) -> None:
        """Drop a run of a baseline that decides nothing; without one of its sweep, or without any, it is left
        out."""
        for race in self.races:
            if job.id in race.runs:
                race.drop(job.id)
            elif job.id not in race.sweep:
                continue
            if not race.runs:
                self._leave_out(race)

    def clear(self) -> None:
        """Forget what was not begun."""
        self._queue.clear()
        self._at_leisure.clear()
        self._others, self._spare, self._no_spare = [], None, True

    def conclude(self) -> None:
        """Choose the winner where all has ended that it is chosen by but another LoRA or another finalist,
        which are given up."""
        self._spare, self._no_spare = None, True
        for race in self.races:
            race.drop_other("the search ended before")
        if self._decided:
            self._choose()

    def take(self, job: Job, result: JobResult) -> None:
        """Store what came of a job."""
        for race in self.races:
            if job.id in race.sweep:
                race.take_sweep(result)
            elif race.owns(job.id):
                race.take(result)
        for finalist in self.finalists:
            if job.id in finalist.runs:
                finalist.take(result)
        if job.kind == "test" and self.winner is not None:
            run = self.winner.runs[tested_run(job.id)]
            run.test, run.error = result.scores.get("test"), result.error or run.error
            run.pseudo_values, run.samples = result.pseudo_values, result.samples
        elif self.winner is not None and job.id in map(weights_job, self.winner.runs):
            self.winner.runs[job.id.removeprefix(_WEIGHTS)].samples = result.samples
            if result.error is not None:
                self.passed_over.append((self.winner, result.error))
                self._test()
        self.advance()

    def advance(self) -> None:
        """Open what has become possible."""
        for race in self.races:
            if self._sweeping and not race.swept:
                self._queue_of(race).extend(race.sweep_jobs(self._seed, self.effort.steps))
        if not self._open or not self._trials:
            return
        if not self.finalists:
            self._choose_finalists()
        seeds = fresh_seeds(self._seed, self.effort.seeds)
        for race in self.races:
            if race.swept and not race.started:
                self._queue_of(race).extend(race.jobs(seeds, self.effort.steps))
            self._others += race.other_jobs(seeds, self.effort.steps)
        if not self._no_spare:
            self._spare = self._next_best()
        if self._decided:
            self._test()

    @property
    def _decided(self) -> bool:
        """Whether all has ended that the winner is chosen by, and it is not chosen yet."""
        known = bool(self.finalists) and all(f.complete for f in self.finalists) and self._spare is None
        return known and not self._testing and all(r.ended for r in self.races if self._awaited(r))

    def _queue_of(self, race: BaselineRuns) -> deque[Job]:
        return self._queue if self._awaited(race) or race.untuned else self._at_leisure

    def _awaited(self, race: BaselineRuns) -> bool:
        """Whether the winner is chosen when a baseline has ended, as it decides as well."""
        return race.prior or race.head_alone or (self.judge.cost is not None and race.single)

    def verdicts(self, goal: Goal | None = None) -> list[Verdict]:
        """What is known of all that may win, what promises most first; where a goal is named, as if the
        search had it."""
        judge = self.judge if goal is None else replace(self.judge, goal=goal)
        return verdicts(self.finalists, self.races, judge)

    @property
    def failed(self) -> list[str]:
        """Names of the baselines of which all trainings failed."""
        return [race.name for race in self.races if race.failed]

    @property
    def lost_seeds(self) -> list[str]:
        """What baselines lost of their fresh seeds and what came of it, a sentence each."""
        told = [race.lost_seed for race in self.races if race.lost_seed is not None]
        failed = [race for race in self.races if race.prior and race.complete and not race.whole]
        return told + [
            f"{race.name} is not returned where another recipe has all of its seeds: "
            f"{len(race.runs) - len(race.good)} of its {len(race.runs)} failed."
            for race in failed
        ]

    @property
    def best_baseline(self) -> Contender | None:
        """The baseline of one recipe that ranks highest on *select*."""
        found = best_baseline(self.races)
        return None if found is None else found.contender()

    def choose(self, among: Callable[[RepeatedRuns], bool]) -> RepeatedRuns | None:
        """What reaches the goal of some of those that may win, else what promises most of them."""
        found = [verdict for verdict in self.verdicts() if among(verdict.runs)]
        verdict = chosen(self.judge.goal, found) or next(iter(found), None)
        return None if verdict is None else verdict.runs

    def _choose(self) -> RepeatedRuns | None:
        self._testing = True
        failed = [side for side, _ in self.passed_over]
        self.winner = self.choose(lambda side: side not in failed)
        return self.winner

    def _test(self) -> None:
        winner = self._choose()
        if winner is None:
            return
        tested = isinstance(winner, Finalist)
        jobs = self._tests(winner, winner.good) if tested else self._weights(winner)
        if jobs:
            self._on_phase("test", len(jobs))
        self._queue.extend(jobs)

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

    def _weights(self, winner: RepeatedRuns) -> list[Job]:
        """A baseline was tested with its runs. That of its weights is trained again where it is known from an
        earlier search, which kept no weights."""
        best = winner.good[0]
        if self._has_weights(best.job):
            return []
        return [
            TrainJob(
                id=weights_job(best.job),
                kind="confirm",
                label=f"{winner.name}, seed {best.seed}, for its weights",
                recipe=winner.recipe,
                seed=best.seed,
                steps=self.effort.steps,
                keep_above=-math.inf,
                samples=True,
            )
        ]

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
            select_values=list(result.select_values) or None,
            precision=job.precision,
            merits={} if result.merit is None else {str(job.steps): result.merit},
            metric=result.metric,
            measured=dict(result.measured) or None,
            samples=list(result.samples) or None,
        )


def _state_of(result: JobResult) -> RecordState:
    if result.error is None:
        return "complete"
    return "interrupted" if result.failure == "stopped" else "failed"


def weights_job(run: str) -> str:
    """The job that trains a baseline's run again for its weights."""
    return f"{_WEIGHTS}{run}"


def retried(job: Job) -> Job:
    """The same job for another worker, with fewer rows at once."""
    return replace(job, attempt=job.attempt + 1)

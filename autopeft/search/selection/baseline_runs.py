"""The runs of a baseline: a sweep of its candidates with up to two seeds, and of the rates next to that of
the best where these come later; then fresh seeds of the best, and of another where one of these is lost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import LOSS, Job, JobResult, TrainJob, UntrainedJob
from autopeft.search.optimization.pareto import order
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import SEED_STRIDE, FreshRun, RepeatedRuns, fresh_seeds
from autopeft.search.selection.non_inferiority import without_lost

__all__ = ["BaselineRuns"]

_SECOND_SEED = SEED_STRIDE // 2


class BaselineRuns(RepeatedRuns):
    """A baseline: a sweep of its candidates on *select* with the search's own seed, a second seed for the
    better half, then fresh seeds of the best; where each candidate is a run of its own, one fresh seed for
    each. Where nothing is trained, the runs score alone. While the best has a rate next to which there are
    further ones (see `Baseline.beyond`), the sweep goes on with these.

    A high rate may lose one of three seeds and neither of the sweep's. Where that happens to the LoRA that a
    search has to beat, the next best candidate with a lower rate has its fresh seeds too, and *select*
    chooses between the two: a winner comes out of several trials, the next of which takes the place of one
    that fails, and is no better than a LoRA that happened to fail.

    Args:
        lost: by how much a fresh seed's score on *select* has to lie below their median for it to be lost;
            one whose loss or score was not finite is. `None`: lost seeds change nothing.

    Attributes:
        sweep: what each run of the sweep so far is ranked by, by job; `None` where it has not ended or
            failed.
        lost_seed: what was lost of the candidate that the sweep chose and what came of it, a sentence.
    """

    def __init__(self, index: int, baseline: Baseline, lost: float | None = None) -> None:
        super().__init__(baseline.name, "baseline")
        self.counts = baseline.counts
        self.index, self.baseline = index, baseline
        self.sweep: dict[str, float | None] = {}
        self._scores: dict[str, float | None] = {}
        self._measures: dict[str, tuple[str | None, str | None]] = {}
        self._candidate: dict[str, int] = {}
        self._open: set[str] = set()
        self._begun = False
        self._second = baseline.second_runs
        self._further = bool(baseline.beyond)
        self._lost, self._chosen = lost if self.prior else None, 0
        self._other: RepeatedRuns | None = None
        self.started = False
        self.lost_seed: str | None = None

    def sweep_jobs(self, seed: int, steps: int) -> list[Job]:
        """The runs of the sweep that can begin: those of every candidate that comes first; once these have
        ended, those with the rates next to that of the best one, as far as there are further ones; then those
        of the better half with a second seed. None where there is nothing to choose, or while runs are
        open."""
        if self._open or self.started:
            return []
        if not self._begun:
            self._begun = True
            return [self._sweep_job(i, seed, steps) for i in range(self.baseline.first_runs)]
        beyond, second = self._beyond, self._second
        if beyond and second:
            return [self._sweep_job(i, seed, steps) for i in beyond]
        self._second = 0
        if beyond:  # the best have two seeds by now
            each = ((self._sweep_job(i, seed, steps), self._second_job(i, seed, steps)) for i in beyond)
            return [job for pair in each for job in pair]
        return [self._second_job(i, seed, steps) for i in self._ranked()[:second]]

    @property
    def _beyond(self) -> list[int]:
        """Candidates with the rates next to that of the best one, which are not tried yet."""
        ranked = self._ranked()
        found = self.baseline.beyond.get(ranked[0], ()) if self._further and ranked else ()
        return [i for i in found if i not in self._candidate.values()]

    def _second_job(self, index: int, seed: int, steps: int) -> Job:
        return self._sweep_job(index, seed + _SECOND_SEED, steps, again=True)

    def _sweep_job(self, index: int, seed: int, steps: int, *, again: bool = False) -> Job:
        id = f"baseline-{self.index}-sweep{index}{'-again' if again else ''}"
        self.sweep[id] = None
        self._candidate[id] = index
        self._open.add(id)
        label, recipe = self.baseline.label(index), self.baseline.candidates[index]
        return TrainJob(
            id=id,
            kind="baseline",
            label=f"{label}, second seed" if again else label,
            recipe=recipe,
            seed=seed,
            steps=steps,
        )

    def _ranked(self) -> list[int]:
        """Candidates that have a score, best first: those with two before those with one, by their mean."""
        scores: dict[int, list[float]] = {}
        for job, score in self.sweep.items():
            if score is not None:
                scores.setdefault(self._candidate[job], []).append(score)
        means = {i: math.fsum(found) / len(found) for i, found in scores.items()}
        return sorted(means, key=lambda i: (-len(scores[i]), order(means[i], number=i)))

    def shorten(self) -> bool:
        """Choose by the first seed alone, unless a second one has begun, and go on to no further rate;
        whether a second seed is given up."""
        skipped, self._second, self._further = self._second, 0, False
        return bool(skipped)

    def leave_out(self) -> None:
        """Train no more of it, and show nothing of what was tried."""
        self.started = self._begun = True
        self._second = 0
        self._open.clear()
        self.sweep.clear()
        self.runs.clear()

    def keep_seeds(self, seeds: Sequence[int]) -> None:
        """Show a score that no seed changes for these seeds alone."""
        if self.untuned:
            self.runs = {job: run for job, run in self.runs.items() if run.seed in seeds}

    def drop(self, job: str) -> None:
        """Do without a run with a fresh seed that was never begun."""
        del self.runs[job]
        if self.baseline.each and self.runs:
            self.name, self.counts = self.baseline.remaining([self._candidate[id] for id in self.runs])

    def take_sweep(self, result: JobResult) -> None:
        """Store one run of the sweep."""
        self._open.discard(result.job)
        self.sweep[result.job] = result.rank
        self._scores[result.job] = result.score
        self._measures[result.job] = result.ranked_by, result.metric

    def swept_candidates(self, steps: int) -> list[TrialRecord]:
        """Each candidate that the sweep has scored, best first: the means over its seeds, as a record."""
        return [self._as_record(index, steps) for index in self._ranked()]

    def _as_record(self, index: int, steps: int) -> TrialRecord:
        jobs = [job for job, rank in self.sweep.items() if self._candidate[job] == index and rank is not None]
        ranks = [self.sweep[job] or 0.0 for job in jobs]
        scores = [self._scores.get(job) or 0.0 for job in jobs]
        measure, metric = self._measures.get(jobs[0], (None, None))
        name = self._run_of(index)
        return TrialRecord(
            kind="baseline",
            label=self.baseline.label(index),
            state="complete",
            recipe=self.baseline.candidates[index],
            steps=steps,
            hash=name,
            job=name,
            counts=self.baseline.counts_of(index),
            score=math.fsum(scores) / len(scores),
            merits={str(steps): math.fsum(ranks) / len(ranks)} if measure == LOSS else {},
            metric=metric,
        )

    def _untrained_jobs(
        self, prefix: str, seeds: Sequence[int], splits: tuple[str, ...], shots: int
    ) -> list[Job]:
        """Each seed draws its own examples. What has none is scored once, and has that score with each."""
        self.recipe = self.baseline.candidates[0]
        jobs: list[Job] = []
        for seed in seeds:
            id = f"{prefix}-s{seed}"
            self.runs[id] = FreshRun(id, seed)
            if shots or not jobs:
                label = f"{self.name}, seed {seed}" if shots else self.name
                jobs.append(
                    UntrainedJob(
                        id=id,
                        kind="baseline",
                        label=label,
                        recipe=self.recipe,
                        seed=seed,
                        splits=splits,
                        counts=self.counts,
                        shots=shots,
                    )
                )
        return jobs

    def take(self, result: JobResult) -> None:
        """See `RepeatedRuns.take`; a score that no seed changes is that of all of them."""
        other = self._other
        if other is not None and result.job in other.runs:
            other.take(result)
            if other.complete:
                self._choose_again(other)
            return
        alike = list(self.runs) if self.untuned else [result.job]
        for job in alike:
            super().take(replace(result, job=job))

    def owns(self, job: str) -> bool:
        """Whether a job is one of its runs with fresh seeds."""
        return job in self.runs or (self._other is not None and job in self._other.runs)

    def other_jobs(self, seeds: Sequence[int], steps: int) -> list[Job]:
        """Fresh seeds of the next best candidate with a lower rate, once the chosen one has lost a seed. None
        where all is well, where there is no such candidate, while runs are open, or a second time."""
        if self._lost is None or self.lost_seed is not None or not (self.started and self.complete):
            return []
        scores = [run.select for run in self.runs.values() if run.select is not None]
        burst = any(run.failure == "non_finite" for run in self.runs.values())
        if not burst and len(without_lost(scores, self._lost)) == len(scores):
            return []
        each = ", ".join(map(_score_of, self.runs.values()))
        self._remark(f"lost a seed (score on select, each seed: {each})")
        rate = _rate_of(self.baseline.candidates[self._chosen])
        lower = (i for i in self._ranked() if _rate_of(self.baseline.candidates[i]) < rate)
        if (index := next(lower, None)) is None:
            return []
        # Its rate tells its runs from those of the first, which may have the same place.
        self._other = other = RepeatedRuns(self.baseline.label(index), "baseline")
        other.recipe, other.counts = self.baseline.candidates[index], self.baseline.counts_of(index)
        other.searched = self._searched(index)
        return other.final_jobs(self._run_of(index), seeds, steps, ("select", "test"), keep=True)

    def _remark(self, what: str) -> None:
        before = self.baseline.label(self._chosen) if self.lost_seed is None else self.lost_seed[:-1]
        self.lost_seed = f"{before}, {what}."

    def _choose_again(self, other: RepeatedRuns) -> None:
        """Take the candidate all of whose seeds ended, of two such the one with the better mean rank."""
        self._other = None
        if not other.whole:
            self._remark(f"and {other.name}, which was tried in its place, failed with a seed")
            return
        ours, theirs = ([run.rank for run in runs.good] for runs in (self, other))
        if self.whole and statistics.fmean(theirs) <= statistics.fmean(ours):
            self._remark(f"and {other.name}, which was tried in its place, was no better")
            return
        self._remark(f"so that {other.name}, has taken its place")
        index = next(i for i, c in enumerate(self.baseline.candidates) if c is other.recipe)
        self.name, self.recipe, self.counts = self.baseline.title(index), other.recipe, other.counts
        self.runs, self.searched = other.runs, other.searched

    def drop_other(self, why: str) -> None:
        """Do without the candidate that might take the place of the chosen one."""
        if self._other is not None:
            self._remark(f"and {why} the next one with a lower rate")
            self._other = None

    @property
    def trained(self) -> bool:
        """Whether something is trained, so that there are weights to return."""
        return self.baseline.shots is None

    @property
    def untuned(self) -> bool:
        """Whether it is the model as it is, which is scored once, with nothing before the prompts."""
        return self.baseline.shots == 0

    @property
    def prior(self) -> bool:
        """Whether it is the LoRA that a search has to beat."""
        return self.baseline.kind == "lora"

    @property
    def head_alone(self) -> bool:
        """Whether it is the head alone, which is the answer where it is as good."""
        return self.baseline.kind == "head"

    @property
    def single(self) -> bool:
        """Whether it is of one recipe, and not a mean of several."""
        return not self.baseline.each

    @property
    def ended(self) -> bool:
        """Whether no run of it is to come."""
        return self.started and self._other is None and (self.complete or not self.runs)

    @property
    def sweep_left(self) -> int:
        """Runs of the sweep that have not ended, as far as it is begun; with one of a further rate, while
        there may be one."""
        if not self._begun:
            return 0
        may_go_on = self._further and not self.started and bool(self._open or self._beyond)
        return len(self._open) + self._second + may_go_on

    @property
    def swept(self) -> bool:
        """Whether the whole sweep has been given out and has ended; a baseline without a choice has none."""
        return self.baseline.sweep_runs == 0 or (self._begun and self.sweep_left == 0)

    @property
    def failed(self) -> bool:
        """Whether all trainings of its sweep failed, so that nothing is compared with it."""
        return self.swept and bool(self.sweep) and not self._ranked()

    def later(self, seeds: int) -> int:
        """Runs with fresh seeds that are still to come."""
        return 0 if self.started else self.baseline.fresh_runs(seeds)

    def jobs(self, seeds: Sequence[int], steps: int) -> list[Job]:
        """Runs with fresh seeds of the chosen candidate, or of each; none where the whole sweep failed."""
        self.started = True
        splits = ("select", "test")
        if self.baseline.each:
            fresh = fresh_seeds(seeds[0] - SEED_STRIDE, len(self.baseline.candidates))
            jobs: list[Job] = []
            for i, recipe in enumerate(self.baseline.candidates):
                self.recipe = recipe
                own = self.final_jobs(self._run_of(i), fresh[i : i + 1], steps, splits, keep=False)
                self._candidate |= {job.id: i for job in own}
                jobs += own
            self.recipe = {}  # there is not one; the counts stay those of the baseline, their mean
            return jobs
        if self.baseline.shots is not None:
            return self._untrained_jobs(self._run_of(0), seeds, splits, self.baseline.shots)
        ranked = self._ranked()
        if self.sweep and not ranked:
            return []
        self._chosen = chosen = ranked[0] if ranked else 0
        self.recipe, self.name = self.baseline.candidates[chosen], self.baseline.title(chosen)
        self.counts, self.searched = self.baseline.counts_of(chosen), self._searched(chosen)
        return self.final_jobs(self._run_of(chosen), seeds, steps, splits, keep=self.prior or self.head_alone)

    def _searched(self, index: int) -> list[tuple[str | None, float]]:
        """What the sweep ranked a candidate by."""
        return [
            (self._measures[job][0], rank)
            for job, rank in self.sweep.items()
            if self._candidate[job] == index and rank is not None
        ]

    def _run_of(self, index: int) -> str:
        """What the runs of a candidate are called. A process that goes on may choose another one, whose runs
        and weights are not those of the first."""
        return f"baseline-{self.index}-{index}"


def _score_of(run: FreshRun) -> str:
    if run.select is not None:
        return f"{run.select:.4g}"
    return "not finite" if run.failure == "non_finite" else "failed"


def _rate_of(recipe: Mapping[str, Any]) -> float:
    return Recipe.from_dict(dict(recipe)).training.learning_rate

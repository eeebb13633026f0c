"""The runs of a baseline: a sweep of its candidates with up to two seeds, and of the rates next to that of
the best where these come later; then fresh seeds of the best, and of another where one of these is lost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

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
        sweep: the results of the sweep so far, by job; `None` of one that has not ended.
        lost_seed: what was lost of the candidate that the sweep chose and what came of it, a sentence.
        trained: whether something is trained, so that there are weights to return.
        untuned: whether it is the model as it is, which is scored once, with nothing before the prompts.
        prior: whether it is the LoRA that a search has to beat.
        head_alone: whether it is the head alone, which is the answer where it is as good.
        single: whether it is of one recipe, and not a mean of several.
    """

    def __init__(self, index: int, baseline: Baseline, lost: float | None = None) -> None:
        super().__init__(baseline.name, "baseline")
        self.counts = baseline.counts
        self.index, self.baseline = index, baseline
        self.trained, self.untuned = baseline.shots is None, baseline.shots == 0
        self.prior, self.head_alone = baseline.kind == "lora", baseline.kind == "head"
        self.single = not baseline.each
        self.sweep: dict[str, JobResult | None] = {}
        self._candidate: dict[str, int] = {}
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
        if self.started or None in self.sweep.values():
            return []
        if not self._begun:
            self._begun = True
            return [self._sweep_job(i, seed, steps) for i in range(self.baseline.first_runs)]
        beyond, second = self._beyond, self._second
        if beyond and second:
            return [self._sweep_job(i, seed, steps) for i in beyond]
        self._second = 0
        if beyond:  # the best have two seeds by now
            seeds = (False, True)
            return [self._sweep_job(i, seed, steps, again=again) for i in beyond for again in seeds]
        return [self._sweep_job(i, seed, steps, again=True) for i in self._ranked()[:second]]

    @property
    def _beyond(self) -> list[int]:
        """Candidates with the rates next to that of the best one, which are not tried yet."""
        ranked = self._ranked()
        found = self.baseline.beyond.get(ranked[0], ()) if self._further and ranked else ()
        return [i for i in found if i not in self._candidate.values()]

    def _sweep_job(self, index: int, seed: int, steps: int, *, again: bool = False) -> Job:
        """A run of a candidate, with the search's own seed or with the second one."""
        id = f"baseline-{self.index}-sweep{index}{'-again' if again else ''}"
        self.sweep[id] = None
        self._candidate[id] = index
        label = self.baseline.label(index)
        return TrainJob(
            id=id,
            kind="baseline",
            label=f"{label}, second seed" if again else label,
            recipe=self.baseline.candidates[index],
            seed=seed + _SECOND_SEED if again else seed,
            steps=steps,
        )

    def _ranked(self) -> list[int]:
        """Candidates that have a score, best first: those with two before those with one, by their mean."""
        scores: dict[int, list[float]] = {}
        for job, result in self.sweep.items():
            if result is not None and result.rank is not None:
                scores.setdefault(self._candidate[job], []).append(result.rank)
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
        self.sweep.clear()
        self.runs.clear()

    def drop(self, job: str) -> None:
        """Do without a run with a fresh seed that was never begun."""
        del self.runs[job]
        if self.baseline.each and self.runs:
            self.name, self.counts = self.baseline.remaining([self._candidate[id] for id in self.runs])

    def swept_candidates(self, steps: int) -> list[TrialRecord]:
        """Each candidate that the sweep has scored, best first: the means over its seeds, as a record."""
        found = []
        for index in self._ranked():
            results = [r for job, r in self.sweep.items() if self._candidate[job] == index and r is not None]
            results = [result for result in results if result.rank is not None]
            rank = math.fsum(result.rank or 0.0 for result in results) / len(results)
            record = TrialRecord(
                kind="baseline",
                label=self.baseline.label(index),
                state="complete",
                recipe=self.baseline.candidates[index],
                steps=steps,
                hash=self._run_of(index),
                job=self._run_of(index),
                counts=self.baseline.tables[index],
                score=math.fsum(result.score or 0.0 for result in results) / len(results),
                merits={str(steps): rank} if results[0].ranked_by == LOSS else {},
                metric=results[0].metric,
            )
            found.append(record)
        return found

    def take(self, result: JobResult) -> None:
        """Store a run of the sweep or one with a fresh seed; a score that no seed changes is that of all of
        them. A run that was left out meanwhile changes nothing."""
        other = self._other
        if result.job in self.sweep:
            self.sweep[result.job] = result
        elif result.job in self.runs:
            for job in list(self.runs) if self.untuned else [result.job]:
                super().take(replace(result, job=job))
        elif other is not None and result.job in other.runs:
            other.take(result)
            if not other.complete:
                return
            # Take the candidate all of whose seeds ended, of two such the one with the better mean rank.
            self._other = None
            ours, theirs = ([run.rank for run in runs.good] for runs in (self, other))
            if not other.whole:
                self._remark(f"and {other.name}, which was tried in its place, failed with a seed")
            elif self.whole and statistics.fmean(theirs) <= statistics.fmean(ours):
                self._remark(f"and {other.name}, which was tried in its place, was no better")
            else:
                self._remark(f"so that {other.name}, has taken its place")
                index = next(i for i, c in enumerate(self.baseline.candidates) if c is other.recipe)
                self.name, self.recipe = self.baseline.titles[index], other.recipe
                self.counts, self.runs, self.searched = other.counts, other.runs, other.searched

    def other_jobs(self, seeds: Sequence[int], steps: int) -> list[Job]:
        """Fresh seeds of the next best candidate with a lower rate, once the chosen one has lost a seed. None
        where all is well, where there is no such candidate, while runs are open, or a second time."""
        if self._lost is None or self.lost_seed is not None or not (self.started and self.complete):
            return []
        scores = [run.select for run in self.runs.values() if run.select is not None]
        burst = any(run.failure == "non_finite" for run in self.runs.values())
        if not burst and len(without_lost(scores, self._lost)) == len(scores):
            return []
        each = [
            f"{run.select:.4g}"
            if run.select is not None
            else "not finite"
            if run.failure == "non_finite"
            else "failed"
            for run in self.runs.values()
        ]
        self._remark(f"lost a seed (score on select, each seed: {', '.join(each)})")
        candidates = self.baseline.candidates
        rates = [Recipe.from_dict(dict(recipe)).training.learning_rate for recipe in candidates]
        lower = (i for i in self._ranked() if rates[i] < rates[self._chosen])
        if (index := next(lower, None)) is None:
            return []
        # Its rate tells its runs from those of the first, which may have the same place.
        self._other = other = RepeatedRuns(self.baseline.label(index), "baseline")
        other.recipe, other.counts = candidates[index], self.baseline.tables[index]
        other.searched = self._searched(index)
        return other.final_jobs(self._run_of(index), seeds, steps, ("select", "test"), keep=True)

    def _remark(self, what: str) -> None:
        before = self.baseline.label(self._chosen) if self.lost_seed is None else self.lost_seed[:-1]
        self.lost_seed = f"{before}, {what}."

    def drop_other(self, why: str) -> None:
        """Do without the candidate that might take the place of the chosen one."""
        if self._other is not None:
            self._remark(f"and {why} the next one with a lower rate")
            self._other = None

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
        running = sum(result is None for result in self.sweep.values())
        may_go_on = self._further and not self.started and bool(running or self._beyond)
        return running + self._second + may_go_on

    @property
    def swept(self) -> bool:
        """Whether the whole sweep has been given out and has ended; a baseline without a choice has none."""
        return self.baseline.sweep_runs == 0 or (self._begun and self.sweep_left == 0)

    @property
    def failed(self) -> bool:
        """Whether all trainings of its sweep failed, so that nothing is compared with it."""
        return self.swept and bool(self.sweep) and not self._ranked()

    def jobs(self, seeds: Sequence[int], steps: int) -> list[Job]:
        """Runs with fresh seeds of the chosen candidate, or of each; none where the whole sweep failed."""
        self.started = True
        splits = ("select", "test")
        jobs: list[Job] = []
        if self.baseline.each:
            fresh = fresh_seeds(seeds[0] - SEED_STRIDE, len(self.baseline.candidates))
            for i, recipe in enumerate(self.baseline.candidates):
                self.recipe = recipe
                own = self.final_jobs(self._run_of(i), fresh[i : i + 1], steps, splits, keep=False)
                self._candidate |= {job.id: i for job in own}
                jobs += own
            self.recipe = {}  # there is not one; the counts stay those of the baseline, their mean
            return jobs
        if (shots := self.baseline.shots) is not None:
            # Each seed draws its own examples. What has none is scored once, and has that score with each.
            self.recipe = self.baseline.candidates[0]
            for seed in seeds:
                id = f"{self._run_of(0)}-s{seed}"
                self.runs[id] = FreshRun(id, seed)
                if shots or not jobs:
                    job = UntrainedJob(
                        id=id,
                        kind="baseline",
                        label=f"{self.name}, seed {seed}" if shots else self.name,
                        recipe=self.recipe,
                        seed=seed,
                        splits=splits,
                        counts=self.counts,
                        shots=shots,
                    )
                    jobs.append(job)
            return jobs
        ranked = self._ranked()
        if self.sweep and not ranked:
            return []
        self._chosen = chosen = ranked[0] if ranked else 0
        self.recipe, self.name = self.baseline.candidates[chosen], self.baseline.titles[chosen]
        self.counts, self.searched = self.baseline.tables[chosen], self._searched(chosen)
        return self.final_jobs(self._run_of(chosen), seeds, steps, splits, keep=self.prior or self.head_alone)

    def _searched(self, index: int) -> list[tuple[str | None, float]]:
        """What the sweep ranked a candidate by."""
        return [
            (result.ranked_by, result.rank)
            for job, result in self.sweep.items()
            if self._candidate[job] == index and result is not None and result.rank is not None
        ]

    def _run_of(self, index: int) -> str:
        """What the runs of a candidate are called. A process that goes on may choose another one, whose runs
        and weights are not those of the first."""
        return f"baseline-{self.index}-{index}"

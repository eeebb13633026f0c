"""What follows a search, in shorter and shorter forms for a time budget, and the work that is left of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.effort import Effort
from autopeft.recipe.pooling import READINGS
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult, testing_job
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds
from autopeft.search.selection.finalists import Finalist

__all__ = ["SCORED", "SCORING", "FinalWork", "Finals", "work_kind", "work_of"]

_HEAD = 0.1
_FEW = 2  # seeds
SCORING = 0.2
"""What scoring a split costs before anything is known of it (see `work_of`)."""
SCORED = "scored"
"""The kind of work of jobs that score and train nothing."""


@dataclass(frozen=True)
class Finals:
    """What follows a search.

    Attributes:
        effort: with the numbers of finalists and of seeds.
        left_out: indices of the baselines that are left out.
        second: whether sweeps train their better half with a second seed, and go on beyond their rates.
    """

    effort: Effort
    left_out: frozenset[int] = frozenset()
    second: bool = True


def work_of(kind: str, recipe: Mapping[str, Any], steps: int, splits: Collection[str]) -> dict[str, float]:
    """What a run costs, by kind of work. A full training of a hybrid costs 1 with its score on *select*; that
    of the head alone costs less, and so does scoring a split alone. *Test* is work of its own kind, as some
    kinds of task have answers written there."""
    if not steps:
        return {SCORED: SCORING * len(splits)}
    trained = recipe.get("layers") or [i for i in recipe.get("model") or () if i not in READINGS]
    training = {kind: 1.0 if trained else _HEAD}
    return {**training, SCORED: SCORING} if "test" in splits else training


def work_kind(job: Job) -> str:
    """The kind of a job's work: how long it takes follows from others of its kind."""
    return job.kind if job.steps else SCORED


class FinalWork:
    """The work that is left after a search, by what is known at the moment.

    Args:
        seed: the search's.
        known: what came of a baseline's run, in this search or before; `None` where it has to run.
        past: final runs of an earlier process, the kind of each by its job.
        best: trials of different recipes, those that would be trained again now first. `None`: it is not
            known yet which will be, and all of the past runs count.
    """

    def __init__(
        self,
        baselines: Sequence[Baseline],
        seed: int,
        known: Callable[[Job], JobResult | None],
        past: Mapping[str, str],
        best: Sequence[TrialRecord] | None = None,
    ) -> None:
        self._baselines, self._seed, self._known = baselines, seed, known
        self._past, self._best = past, best
        self._found: dict[tuple[int, int, bool], dict[str, float]] = {}

    def forms(self, effort: Effort) -> Iterator[Finals]:
        """The finals in full and then shorter and shorter: fewer finalists, down to one; fewer seeds, down to
        three; then the same without the trained baselines that cost most, down to LoRA, which every winner
        has to beat; then no second seed in LoRA's sweep, and no rate beyond; then no examples before prompts;
        at last two seeds, of which no interval can be short. The untuned model is scored once in any case.
        What is known already is never left out.
        """
        efforts = [replace(effort, top=top) for top in range(effort.top, 0, -1)]
        efforts += [replace(effort, top=1, seeds=seeds) for seeds in range(effort.seeds - 1, _FEW, -1)]
        whole = Finals(effort)
        left = {i: math.fsum(self._of_baseline(i, whole).values()) for i in range(len(self._baselines))}
        others = [i for i, b in enumerate(self._baselines) if b.kind != "lora" and b.shots != 0 and left[i]]
        dear = sorted((i for i in others if self._baselines[i].shots is None), key=lambda i: -left[i])
        for n in range(len(dear) + 1):
            yield from (Finals(smaller, frozenset(dear[:n])) for smaller in efforts)
        yield Finals(efforts[-1], frozenset(dear), second=False)
        if len(others) > len(dear):
            yield Finals(efforts[-1], frozenset(others), second=False)
        shortest = replace(efforts[-1], seeds=min(effort.seeds, _FEW))
        if shortest != efforts[-1]:
            yield Finals(shortest, frozenset(others), second=False)

    def least(self, effort: Effort) -> dict[str, float]:
        """What is left of the finals of which least is: seldom more than the shortest, where longer ones were
        trained before."""
        return min(map(self.left, self.forms(effort)), key=lambda left: math.fsum(left.values()))

    def left(self, finals: Finals) -> dict[str, float]:
        """What is left of some finals: trainings by kind of work (see `work_of`)."""
        effort = finals.effort
        confirmed, tested = self._done(effort)
        found = Counter[str](
            {
                "confirm": float(max(0, effort.top * effort.seeds - confirmed)),
                "baseline": 0.0,
                SCORED: SCORING * max(0, effort.seeds - tested),
            }
        )
        for i in range(len(self._baselines)):
            if i not in finals.left_out:
                found.update(self._of_baseline(i, finals))
        return dict(found)

    def _done(self, effort: Effort) -> tuple[int, int]:
        """How many trainings of the finalists were made before, and how many tests of one of them. Runs of
        what is no longer a finalist, as a later trial was better, spare nothing."""
        if self._best is None:
            kinds = Counter(self._past.values())
            return kinds["confirm"], kinds["test"]
        seeds = fresh_seeds(self._seed, effort.seeds)
        finalists = [Finalist(record).jobs(seeds, effort.steps) for record in self._best[: effort.top]]
        trained = sum(job.id in self._past for jobs in finalists for job in jobs)
        tests = (sum(testing_job(job.id) in self._past for job in jobs) for jobs in finalists)
        return trained, max(tests, default=0)

    def _of_baseline(self, index: int, finals: Finals) -> dict[str, float]:
        key = index, finals.effort.seeds, finals.second
        if key not in self._found:
            self._found[key] = self._play(index, finals)
        return self._found[key]

    def _play(self, index: int, finals: Finals) -> dict[str, float]:
        """The work that is left of a baseline: it is played through with what is known."""
        baseline, effort = self._baselines[index], finals.effort
        race, seeds = BaselineRuns(index, baseline), fresh_seeds(self._seed, effort.seeds)
        steps = 0 if baseline.shots is not None else effort.steps
        swept = work_of("baseline", baseline.candidates[0], steps, ("select",))
        fresh = work_of("baseline", baseline.candidates[0], steps, ("select", "test"))
        if not finals.second:
            race.shorten()
        while jobs := race.sweep_jobs(self._seed, effort.steps):
            for result in map(self._known, jobs):
                if result is not None:
                    race.take_sweep(result)
        if not race.swept:
            runs = race.sweep_left, baseline.fresh_runs(effort.seeds)
        else:
            runs = 0, sum(self._known(job) is None for job in race.jobs(seeds, effort.steps))
        return {kind: swept.get(kind, 0.0) * runs[0] + each * runs[1] for kind, each in fresh.items()}

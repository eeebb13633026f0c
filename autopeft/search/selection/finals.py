"""What follows a search, in shorter and shorter forms for a time budget, and the work that is left of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autopeft.effort import Effort
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds

__all__ = ["SCORED", "SCORING", "FinalWork", "Finals", "trainings", "work_kind"]

_HEAD = 0.1
_FEW = 2  # seeds
SCORING = 0.2
"""What scoring a split costs before anything is known of it (see `trainings`)."""
SCORED = "scored"
"""The kind of work of jobs that score and train nothing."""


@dataclass(frozen=True)
class Finals:
    """What follows a search.

    Attributes:
        effort: with the numbers of finalists and of seeds.
        left_out: indices of the baselines that are left out.
        second: whether sweeps train their better half with a second seed.
    """

    effort: Effort
    left_out: frozenset[int] = frozenset()
    second: bool = True


def trainings(recipe: Mapping[str, Any], steps: int, splits: int = 1) -> float:
    """What a run costs, where a full training of a hybrid costs 1: one of the head alone, or one that scores
    so many splits alone, costs less."""
    if not steps:
        return SCORING * splits
    return 1.0 if recipe.get("layers") or recipe.get("model") else _HEAD


def work_kind(job: Job) -> str:
    """The kind of a job's work: how long it takes follows from others of its kind."""
    return job.kind if job.steps else SCORED


class FinalWork:
    """The work that is left after a search, by what is known at the moment.

    Args:
        seed: the search's.
        known: what came of a baseline's run, in this search or before; `None` where it has to run.
        past: final runs of an earlier process, by kind.
    """

    def __init__(
        self,
        baselines: Sequence[Baseline],
        seed: int,
        known: Callable[[Job], JobResult | None],
        past: Mapping[str, int],
    ) -> None:
        self._baselines, self._seed, self._known, self._past = baselines, seed, known, past
        self._found: dict[tuple[int, int, bool], float] = {}

    def forms(self, effort: Effort) -> Iterator[Finals]:
        """The finals in full and then shorter and shorter: fewer finalists, down to one; fewer seeds, down to
        three; then the same without the baselines that cost most, down to LoRA, which every winner has to
        beat, and the untuned model, which is scored once; then two seeds, of which no interval can be short;
        at last no second seed in LoRA's sweep. What is known already is never left out.
        """
        efforts = [replace(effort, top=top) for top in range(effort.top, 0, -1)]
        efforts += [replace(effort, top=1, seeds=seeds) for seeds in range(effort.seeds - 1, _FEW, -1)]
        whole = Finals(effort)
        kept = [b.kind == "lora" or b.shots == 0 for b in self._baselines]
        left = {i: self._of_baseline(i, whole) for i, always in enumerate(kept) if not always}
        dear = sorted((i for i in left if left[i]), key=lambda i: -left[i])
        for n in range(len(dear) + 1):
            yield from (Finals(smaller, frozenset(dear[:n])) for smaller in efforts)
        shortest = replace(efforts[-1], seeds=min(effort.seeds, _FEW))
        if shortest != efforts[-1]:
            yield Finals(shortest, frozenset(dear))
        yield Finals(shortest, frozenset(dear), second=False)

    def left(self, finals: Finals) -> dict[str, float]:
        """What is left of some finals: trainings by kind of work (see `trainings`)."""
        effort = finals.effort
        kept = [i for i in range(len(self._baselines)) if i not in finals.left_out]
        scored = [i for i in kept if self._baselines[i].shots is not None]
        tests = SCORING * max(0, effort.seeds - self._past.get("test", 0))
        return {
            "confirm": float(max(0, effort.top * effort.seeds - self._past.get("confirm", 0))),
            "baseline": math.fsum(self._of_baseline(i, finals) for i in kept if i not in scored),
            SCORED: math.fsum([tests, *(self._of_baseline(i, finals) for i in scored)]),
        }

    def _of_baseline(self, index: int, finals: Finals) -> float:
        key = index, finals.effort.seeds, finals.second
        if key not in self._found:
            self._found[key] = self._play(index, finals)
        return self._found[key]

    def _play(self, index: int, finals: Finals) -> float:
        """The work that is left of a baseline: it is played through with what is known."""
        baseline, effort = self._baselines[index], finals.effort
        race, seeds = BaselineRuns(index, baseline), fresh_seeds(self._seed, effort.seeds)
        each = trainings(baseline.candidates[0], 0 if baseline.shots is not None else effort.steps, splits=2)
        if not finals.second:
            race.skip_second_seed()
        while jobs := race.sweep_jobs(self._seed, effort.steps):
            for result in map(self._known, jobs):
                if result is not None:
                    race.take_sweep(result)
        if not race.swept:
            return each * (race.sweep_left + baseline.fresh_runs(effort.seeds))
        return each * sum(self._known(job) is None for job in race.jobs(seeds, effort.steps))

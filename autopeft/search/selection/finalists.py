"""Who wins: finalists ranked on *select* by all their scores; *test* is for winner and baselines alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job
from autopeft.search.optimization.pareto import order
from autopeft.search.selection.contender import RepeatedRuns

__all__ = ["Finalist", "choose_finalists", "choose_winner", "promise"]

_DIGITS = 12  # sums of equal scores in another order are equal


class Finalist(RepeatedRuns):
    """One of the search's best recipes, to be retrained with fresh seeds."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(f"finalist {record.number}", "confirm")
        self.recipe, self.counts, self.number = record.recipe, record.counts or {}, record.number
        self._searched = record.rank

    @property
    def ranks(self) -> list[float]:
        """What each of its runs is ranked by on *select*: that of the search, and those of fresh seeds."""
        fresh = [run.rank for run in self.good]
        return fresh if self._searched is None else [self._searched, *fresh]

    def jobs(self, seeds: Iterable[int], steps: int) -> list[Job]:
        """Its runs; they keep their weights, of which the winner's are tested."""
        return self.final_jobs(f"confirm-{self.number}", seeds, steps, ("select",), keep=True)


def choose_finalists(records: Iterable[TrialRecord], top: int) -> list[TrialRecord]:
    """The best `top` of `records` (best first already) that are different recipes."""
    seen: set[str] = set()
    chosen: list[TrialRecord] = []
    for record in records:
        if record.hash not in seen and len(chosen) < top:
            seen.add(record.hash)
            chosen.append(record)
    return chosen


def choose_winner(finalists: Sequence[Finalist]) -> Finalist | None:
    """The finalist whose scores on *select* promise most (see `promise`); one whose runs partly failed comes
    after the others."""
    scored = [f for f in finalists if f.good]
    if not scored:
        return None
    found = dict(zip(map(id, scored), promise([f.ranks for f in scored]), strict=True))

    def rank(f: Finalist) -> tuple[bool, tuple[float, float, float]]:
        return len(f.good) < len(f.runs), order(found[id(f)], f.counts.get("deployed"))

    return min(scored, key=rank)


def promise(scores: Sequence[Sequence[float]]) -> list[float]:
    """What each of several recipes is expected to score: the mean of all its scores, drawn towards the mean
    of all recipes as if each had scored that once more.

    The score of the search counts like those of fresh seeds. Under a common prior the posterior mean does not
    depend on why a recipe was trained again, while its plain mean would be too high (Efron 2011). That one
    more score is the posterior of normal scores whose recipes differ as much as their seeds do.
    """
    means = [math.fsum(own) / len(own) for own in scores]
    middle = math.fsum(means) / len(means)
    return [round((math.fsum(own) + middle) / (len(own) + 1), _DIGITS) for own in scores]

"""Who is trained again: the best of the search, or the smallest or cheapest that may be within the margin.

*Select* alone decides; *test* is for winner and baselines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from autopeft.runs.records import TrialRecord
from autopeft.search.core.goals import Cost
from autopeft.search.core.jobs import LOSS, Job
from autopeft.search.optimization.pareto import nondominated, order
from autopeft.search.selection.contender import RepeatedRuns

__all__ = ["Finalist", "choose_finalists", "choose_frugal", "promise"]

_DIGITS = 12  # sums of equal scores in another order are equal


class Finalist(RepeatedRuns):
    """One of the recipes that are retrained with fresh seeds: a trial, or a candidate of a baseline, which
    has no number and goes by its label and its job."""

    def __init__(self, record: TrialRecord) -> None:
        numbered = record.number is not None
        super().__init__(f"finalist {record.number}" if numbered else record.label, "confirm")
        self.recipe, self.counts, self.number = record.recipe, record.counts or {}, record.number
        if record.rank is not None:
            measure = LOSS if str(record.steps) in record.merits else record.metric
            self.searched = [(measure, record.rank)]
        self._prefix = f"confirm-{record.number if numbered else record.job}"

    def jobs(self, seeds: Iterable[int], steps: int) -> list[Job]:
        """Its runs; they keep their weights, of which the winner's are tested."""
        return self.final_jobs(self._prefix, seeds, steps, ("select",), keep=True)


def choose_finalists(records: Iterable[TrialRecord], top: int) -> list[TrialRecord]:
    """The best `top` of `records` (best first already) that are different recipes."""
    seen: set[str] = set()
    chosen: list[TrialRecord] = []
    for record in records:
        if record.hash not in seen and len(chosen) < top:
            seen.add(record.hash)
            chosen.append(record)
    return chosen


def choose_frugal(
    records: Sequence[TrialRecord], top: int, cost: Cost, baseline: TrialRecord | None, margin: float
) -> list[TrialRecord]:
    """`top` different recipes of `records` (best first): some that cost less than the best baseline and may
    be within the margin of it, from the cheapest to the best of them, and the best of all.

    A score of one seed flatters a recipe that was chosen by it. It is drawn half the way towards the
    baseline's, as if the recipe had scored that once more (see `promise`). Of what is then within the margin,
    recipes come first that no cheaper one beats. They are spread, as the cheapest is the likeliest to fall
    short once it is trained again. Where one alone is trained again, it is the best of them.

    Args:
        baseline: the best one; `None` for the best record, whatever it costs.
    """
    complete = choose_finalists(records, len(records))
    if not complete:
        return []
    goal = complete[0].score if baseline is None else baseline.score
    most = math.inf if baseline is None else _cost(baseline, cost)
    near = [
        r
        for r in complete
        if r.score is not None and goal is not None and _cost(r, cost) < most
        if (r.score - goal) / 2 >= -margin
    ]
    front = nondominated(near, lambda r: order(r.rank or 0.0, _cost(r, cost), r.number))
    if top == 1:
        return (near or complete)[:1]
    slots, last = top - 1, len(front) - 1
    spread = [front[round(i * last / max(slots - 1, 1))] for i in range(slots)] if front else []
    others = sorted(near, key=lambda r: _cost(r, cost))
    ranked = [*spread, complete[0], *front, *others, *complete]
    return list({id(r): r for r in ranked}.values())[:top]


def _cost(record: TrialRecord, cost: Cost) -> float:
    found: float | None = getattr(record, cost)
    return math.inf if found is None else float(found)


def promise(scores: Sequence[Sequence[float]]) -> list[float]:
    """What each of several recipes is expected to score: the mean of all its scores, drawn towards the median
    of all recipes' means as if each had scored that once more. Their mean would follow one that collapsed,
    and fewer scores follow it further.

    The score of the search counts like those of fresh seeds. Under a common prior the posterior mean does not
    depend on why a recipe was trained again, while its plain mean would be too high (Efron 2011). That one
    more score is the posterior of normal scores whose recipes differ as much as their seeds do.
    """
    means = [math.fsum(own) / len(own) for own in scores]
    middle = statistics.median(means)
    return [round((math.fsum(own) + middle) / (len(own) + 1), _DIGITS) for own in scores]

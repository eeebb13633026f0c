"""Who wins: of what was trained with fresh seeds, the best, the smallest or the cheapest.

*Select* alone decides. The LoRA baseline takes part, so that a search returns it where nothing is better, and
so does the head alone. A baseline outside the budget or the limits of the search is compared with, and never
returned.

- `best` is what promises most (see `promise`); of equals LoRA, then the smaller one. The head alone is the
  answer where it promises most itself, and where it is as good as what does: within the margin of it with a
  probability of 60 % (see below), and not below it by more than noise, which is a probability of 2.5 % that
  it is level. So a hybrid that is better by more than noise stays the winner, however wide the margin, and
  rows or seeds that tell nothing do not let the head win.
- `smallest` and `cheapest` are what costs least of the recipes that are within the margin of the best
  baseline with a probability of 60 % (see `non_inferiority`). That baseline itself is, and takes part:
  nothing that costs more wins, by its predicted steps or by its measured ones. Without baselines the margin
  is that of what promises most.

A much higher probability would refuse most recipes that lose half of the margin: a few seeds on a thousand
rows show a point more or less by chance. Before anything is seen it is 84 %, that of a normal one standard
deviation above minus the margin. So what *select* shows has to count, too: where its rows are so few that
less than half of a difference is believed, no recipe passes. Whether the winner is as good is told on
*test*, with an interval of 95 %.

Steps that take up to a quarter longer than the shortest ones count as short as these, and of such recipes the
one wins that promises most. The cheapest of several that may be within the margin is the one that most often
only seems to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from autopeft.search.core.goals import GOALS, OBJECTIVES, Cost, Goal
from autopeft.search.optimization.pareto import order
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.contender import LOST, RepeatedRuns
from autopeft.search.selection.finalists import Finalist, promise
from autopeft.search.selection.non_inferiority import (
    NonInferiority,
    non_inferiority,
    seed_noise,
    without_lost,
)
from autopeft.search.selection.significance import MARGIN
from autopeft.tasks.scored import ScoredSplit

__all__ = ["ALIKE", "ENOUGH", "LEAST_WEIGHT", "Judge", "Verdict", "best_baseline", "chosen", "verdicts"]

ENOUGH, LEAST_WEIGHT = 0.6, 0.5
"""Probability from which on a recipe counts as within the margin, and what the difference that *select* shows
has to count for at least."""
_NOISE = 0.025
"""Probability of being level below which a recipe is worse by more than noise, as of an interval of 95 %."""
ALIKE = 0.25
"""Share by which a step may take longer than the shortest one and count as short as that: nine of ten
predictions of a step's time are within a fifth of what is measured (`experiments/resources`)."""


@dataclass(frozen=True)
class Judge:
    """What recipes are judged by.

    Attributes:
        goal: which of them wins.
        margin: of the score, by which a recipe may be worse than the best baseline.
        select: the rows that decide.
        step_cost: what a training step of a recipe takes, where LoRA on all layers takes 1; `None` where
            nothing is predicted.
        inside: whether a recipe lies inside the budget and the limits of the search, so that it may be
            returned. Trials do; baselines need not.
    """

    goal: Goal = "best"
    margin: float = MARGIN
    select: ScoredSplit = field(default_factory=lambda: ScoredSplit("accuracy", 1))
    step_cost: Callable[[Mapping[str, Any]], float] | None = None
    inside: Callable[[Mapping[str, Any]], bool] = lambda recipe: True

    @property
    def cost(self) -> Cost | None:
        """What the goal makes small."""
        return OBJECTIVES[GOALS[self.goal]]

    def cost_of_step(self, recipe: Mapping[str, Any]) -> float | None:
        """The predicted cost of a step."""
        return None if self.step_cost is None else self.step_cost(recipe)


@dataclass(frozen=True)
class Verdict:
    """What is known of a recipe that was trained with fresh seeds.

    Attributes:
        runs: the recipe, and its runs.
        promise: what it is expected to be ranked by.
        beside: what *select* says of it beside the best baseline, `None` for that one itself.
        deployed, step_cost: what it costs; `baseline_cost` is a step's of the best baseline, `None` where
            that is not trained.
        sure: whether it counts as within the margin.
        dearer: whether its steps take longer than those of the best baseline, as predicted or as measured in
            the runs with fresh seeds of both.
        place: sorts what promises most first.
    """

    runs: RepeatedRuns
    promise: float
    beside: NonInferiority | None
    deployed: float | None
    step_cost: float | None
    sure: bool
    baseline_cost: float | None = None
    dearer: bool = False
    place: tuple[bool, float, bool, float] = (False, 0.0, False, 0.0)

    @property
    def untold(self) -> bool:
        """Whether it might be within the margin, and *select* has too few rows to tell."""
        return self.beside is not None and self.beside.within >= ENOUGH and not self.sure


def best_baseline(races: Sequence[BaselineRuns]) -> BaselineRuns | None:
    """The baseline of one recipe that ranks highest on *select*; `None` where there is none."""
    there = [race for race in races if race.recipe and race.good]
    return max(there, key=lambda race: math.fsum(race.ranks) / len(race.ranks), default=None)


def verdicts(finalists: Sequence[Finalist], races: Sequence[BaselineRuns], judge: Judge) -> list[Verdict]:
    """What is known of the finalists, of the LoRA baseline and of the head alone, what promises most first;
    where the goal is the best, the head alone comes before all where it is as good as the first of the
    others.

    Where the goal is not the best, the best baseline takes part, if it was trained: the others are measured
    by it in any case. None takes part outside budget and limits. Where there is no baseline, the one that
    promises most stands for it.
    """
    leader = best_baseline(races)
    runs: list[RepeatedRuns] = []
    for race in races:
        dear = judge.cost is not None and race is leader and race.trained
        may_win = race.prior or race.head_alone or dear
        if race.good and race.recipe and may_win and judge.inside(race.recipe):
            runs.append(race)
    runs += [finalist for finalist in finalists if finalist.good]
    if not runs:
        return []
    expected = dict(zip(map(id, runs), promise([side.ranks for side in runs]), strict=True))
    reference: RepeatedRuns = leader or max(runs, key=lambda side: expected[id(side)])
    everyone = [*runs, *([] if any(side is reference for side in runs) else [reference])]
    # Without predictions, what steps took, as far as all were measured in this search.
    trains = {id(side): not isinstance(side, BaselineRuns) or side.trained for side in everyone}
    step_time = {id(side): side.measured.get("step_time") for side in everyone}
    unknown = any(step_time[id(side)] is None and trains[id(side)] for side in everyone)
    predicted = judge.step_cost is not None or unknown
    cost = {id(s): judge.cost_of_step(s.recipe) if predicted else step_time[id(s)] for s in everyone}
    found = []
    for side in runs:
        same = side is reference
        seen = None if same else _beside(side, reference, everyone, judge)
        own, others = cost[id(side)], cost[id(reference)] if trains[id(reference)] else None
        times = (own, others), (step_time[id(side)], step_time[id(reference)])
        first, size, _ = order(expected[id(side)], side.counts.get("deployed"))
        found.append(
            Verdict(
                side,
                expected[id(side)],
                seen,
                side.counts.get("deployed"),
                own,
                same or _is_sure(seen),
                others,
                any(mine is not None and other is not None and mine > other for mine, other in times),
                (not side.whole, first, isinstance(side, Finalist), size),
            )
        )

    found.sort(key=lambda verdict: verdict.place)
    if judge.cost is None and found[0].runs.whole:
        for head in found[1:]:
            if isinstance(head.runs, BaselineRuns) and head.runs.head_alone and head.runs.whole:
                seen = _beside(head.runs, found[0].runs, everyone, judge)
                if _is_sure(seen) and seen.level >= _NOISE:
                    found.remove(head)
                    found.insert(0, head)
    return found


def _beside(
    side: RepeatedRuns, other: RepeatedRuns, everyone: Sequence[RepeatedRuns], judge: Judge
) -> NonInferiority | None:
    """What *select* says of a recipe beside another one. A seed of a third recipe that fell far below the
    others of it says nothing of how much seeds vary."""
    scores = []
    for one in everyone:
        own = [run.select for run in one.good if run.select is not None]
        scores.append(own if one is side or one is other else without_lost(own, LOST * judge.select.span))
    return non_inferiority(side, other, seed_noise(scores), judge.select, judge.margin)


def _is_sure(seen: NonInferiority | None) -> TypeGuard[NonInferiority]:
    """Whether a recipe counts as within the margin."""
    return seen is not None and seen.within >= ENOUGH and seen.weight >= LEAST_WEIGHT


def chosen(goal: Goal, found: Sequence[Verdict]) -> Verdict | None:
    """What reaches a goal, of verdicts in order; `None` where nothing is known that could tell."""
    cost = OBJECTIVES[GOALS[goal]]
    if cost is None:
        return found[0] if found else None
    known = [v for v in found if v.sure and v.runs.whole and getattr(v, cost) is not None]
    if cost == "step_cost":
        # All are dearer where the best baseline lies outside the limits, and cannot be returned.
        known = [v for v in known if not v.dearer] or known
    least = min((getattr(v, cost) for v in known), default=math.inf)
    share = ALIKE if cost == "step_cost" else 0.0
    return next((v for v in known if getattr(v, cost) <= least * (1 + share)), None)

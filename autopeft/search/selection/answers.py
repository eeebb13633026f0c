"""What one search has to say of each goal: the best, the smallest and the cheapest of what was confirmed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.display import mean_sd, number
from autopeft.recipe import Recipe
from autopeft.runs.records import CountTable
from autopeft.search.core.goals import GOALS, Goal
from autopeft.search.selection.contender import Contender
from autopeft.search.selection.significance import MARGIN, Comparison, points, within
from autopeft.search.selection.verdicts import ALIKE, LEAST_WEIGHT, Verdict, chosen

__all__ = ["Answer", "answers", "finding", "origin"]

_TAKES: dict[Goal, str] = {"smallest": "size", "cheapest": "training cost"}
# Steps that differ by less count as alike (see `ALIKE`).
_LESS: dict[Goal, str] = {
    "smallest": "less size",
    "cheapest": f"a training cost that is {100 * ALIKE / (1 + ALIKE):.0f} % lower or more",
}


@dataclass(frozen=True)
class Answer:
    """What reaches a goal, as far as *select* tells.

    Attributes:
        goal: which one.
        name: the trial, or the baseline.
        number: the trial's; `None` of a baseline.
        select: scores of each fresh seed, by `metric` where that is not the task's.
        baseline: name of the best baseline; `None` where there is none, or this is it.
        difference: of the mean scores on *select*, to that baseline.
        within: probability that it is within the margin of it; `None` where *select* has too few rows to
            tell.
        size_share: deployed parameters beside those of the baseline.
        cost_share: time of a training step beside that of the baseline; `measured` tells whether it was
            measured in their runs with fresh seeds, or predicted.
    """

    goal: Goal
    name: str
    number: int | None
    recipe: Mapping[str, Any] = field(repr=False)
    counts: CountTable
    select: tuple[float, ...]
    baseline: str | None = None
    difference: float | None = None
    within: float | None = None
    size_share: float | None = None
    cost_share: float | None = None
    measured: bool = False
    metric: str | None = None

    def sentence(self) -> str:
        """The answer in one sentence."""
        brief = Recipe.from_dict(dict(self.recipe)).brief
        size = number(self.counts.get("deployed"))
        what = f"{self.goal.capitalize()}: {self.name} ({brief}), {size} parameters"
        by = "" if self.metric is None else f"{self.metric} "
        said = [what, f"{by}{mean_sd(self.select)} on select"]
        if self.baseline is None:
            return f"{', '.join(said)}."
        if self.cost_share is not None:
            how = "" if self.measured else " (predicted)"
            said.append(f"{share_text(self.cost_share)} of the training cost of {self.baseline}{how}")
        if self.difference is not None:
            said.append(f"{points(self.difference, sign=True)} points to it")
        if self.within is not None:
            said.append(f"within the margin with a probability of {self.within:.0%}".replace("%", " %"))
        return f"{', '.join(said)}."

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {**vars(self), "recipe": dict(self.recipe), "text": self.sentence()}


def share_text(share: float) -> str:
    """`0.52`, and more digits of what is smaller."""
    return f"{share:.2f}" if share >= 0.095 else f"{share:.2g}"


def origin(side: Contender) -> str:
    """What a recipe is called: the trial that it was, or its own name."""
    return side.name if side.number is None else f"trial {side.number}"


def answers(
    found: Callable[[Goal], Sequence[Verdict]], baseline: Contender | None, metric: str | None = None
) -> dict[Goal, Answer | None]:
    """The answer to each goal, `None` where nothing is known that could tell.

    Args:
        found: gives the verdicts of a goal in their order.
        baseline: the best one.
        metric: that scores *select*, where it is another than the task's.
    """
    told: dict[Goal, Answer | None] = {}
    for goal in GOALS:
        verdict = chosen(goal, found(goal))
        if verdict is None:
            told[goal] = None
            continue
        mine = verdict.runs.contender()
        answer = Answer(goal, origin(mine), mine.number, mine.recipe, mine.counts, mine.select, metric=metric)
        if baseline is not None and verdict.beside is not None:
            # What a step takes beside the baseline's, measured where it was measured in both.
            cost = _share(mine.measured.get("step_time"), baseline.measured.get("step_time"))
            measured = cost is not None
            if cost is None:
                cost = _share(verdict.step_cost, verdict.baseline_cost)
            answer = replace(
                answer,
                baseline=baseline.name,
                difference=verdict.beside.difference,
                within=verdict.beside.within if verdict.beside.weight >= LEAST_WEIGHT else None,
                size_share=_share(verdict.deployed, baseline.counts.get("deployed")),
                cost_share=cost,
                measured=measured,
            )
        told[goal] = answer
    return told


def _share(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def finding(
    goal: Goal,
    answer: Answer | None,
    comparison: Comparison | None,
    *,
    returned: str | None = None,
    by_trial: bool = False,
    head_alone: bool = False,
    highest: str | None = None,
    unfinished: bool = False,
    margin: float = MARGIN,
) -> str | None:
    """What a search for its goal has found, in a sentence or two that say no more than *test* shows; `None`
    where the goal is the best and a hybrid was found.

    Args:
        answer: what reaches the goal on *select*; `None` where nothing did.
        comparison: of the winner with the best baseline on *test*; `None` where there is no baseline, or it
            is the winner.
        returned: name of the baseline that is the winner; `by_trial` where a trial is the winner, of the very
            same recipe.
        head_alone: whether that baseline is the head alone.
        highest: name of a baseline that ranks higher on *select* and may not be returned.
        unfinished: whether a run of a finalist failed, so that it cannot win.
    """
    near = within(margin)
    nothing = "Nothing that ended all of its runs" if unfinished else "Nothing found"
    if goal == "best" and (returned is None or by_trial):
        return None if returned is None else f"The best that was found is {returned}."
    if goal == "best":
        said = f"{nothing} beats {returned}: it is returned."
        if head_alone:
            any_hybrid = "any hybrid that ended all of its runs" if unfinished else "any hybrid found"
            said = (
                f"The head alone does as well as {any_hybrid} ({near}, as far as select tells): it is "
                "returned, and nothing is placed on the backbone."
            )
        if highest is not None:
            said += (
                f" The baseline {highest} ranks higher on select, but of the baselines only LoRA and the "
                "head alone may be returned, inside the budget and the limits."
            )
        return said
    if head_alone and comparison is None:
        return (
            "The head alone ranks highest of the baselines on select, and nothing that is as good costs "
            "less: it is returned, and nothing is placed on the backbone."
        )
    if head_alone:
        rest = finding(goal, answer, comparison, unfinished=unfinished, margin=margin)
        return f"The head alone is returned, and nothing is placed on the backbone. {rest}"
    takes = _TAKES[goal]
    if comparison is None and returned is not None:
        return f"{nothing} is as good as {returned} ({near}) with {_LESS[goal]}: it is returned."
    if comparison is None and answer is None:
        return f"Nothing is known that tells the {goal}: what promises most is returned."
    if comparison is None:
        return f"The least {takes} {near} of the best that was found, as far as select tells."
    if comparison.difference is None:
        return comparison.sentence()
    if answer is None:
        return (
            f"{nothing} is as good as {comparison.baseline} ({near}), as far as select tells: what "
            f"promises most is returned. {comparison.sentence()}"
        )
    share, how = answer.size_share, ""
    if goal == "cheapest":
        share, how = answer.cost_share, "" if answer.measured else " (predicted)"
    beside = "" if share is None else f" at {share_text(share)} of its {takes}{how}"
    if comparison.as_good:
        return f"As good as {comparison.baseline} ({near}, 95 %){beside}."
    asked = f"That the winner is as good as {comparison.baseline} ({near}){beside} is not shown."
    return f"{asked} {comparison.sentence()}"

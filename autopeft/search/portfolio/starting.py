"""What a search tries first: the portfolio's best, as points of its space."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.recipe import Recipe
from autopeft.search.portfolio.choices import rank
from autopeft.search.portfolio.evidence import shipped_evidence
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.projection import values_of

__all__ = ["MOST", "portfolio_points"]

MOST = 5
"""Points of a search at most; a short one has two thirds of its trials for them, as more draws gained nothing
(`experiments/allocation`)."""

NEAR = 0.9
"""Share of a recipe's placements that a point of the space has to have in common with it."""

_TRIED = 8  # recipes, from the best one, until enough can be said in the space


def portfolio_points(
    bound: BoundSpace,
    budget: Budget,
    rows: int,
    trials: int,
    *,
    leave_out: Collection[str],
    serve: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """The portfolio's best recipes as points of a space, best first, and a line that says which.

    They are tried, not recommended: on a single task a recipe may well be better than plain LoRA though it is
    not in the mean, and the chance of a search's other proposals is far smaller. So all are points that the
    evidence does not show to be worse in the mean, the one that is expected to gain most first. Where there
    is no evidence, there are none. A recipe that the space cannot express, nor nearly, is left out.

    Args:
        rows: of train.
        trials: of the search that nothing else is tried first in.
        leave_out: clusters whose trainings are no evidence.
        serve: how recipes have to be servable.
    """
    wanted = min(MOST, 2 * trials // 3)
    ranking = rank(shipped_evidence(), bound.spec, budget, rows, leave_out=leave_out, serve=serve)
    plain = None if ranking.reference is None else ranking.reference.key.template
    promising = [
        (c.estimate.gain, c.fitted)
        for c in ranking.choices
        if c.estimate is not None and c.estimate.high > 0 and c.fitted.template != plain
    ]
    # The best recipe of each template: two rates of one structure would spend a trial on little.
    best: dict[str, Recipe] = {}
    for _, fitted in sorted(promising, key=lambda pair: -pair[0]):
        best.setdefault(fitted.template, fitted.recipe)
    points: dict[str, dict[str, Any]] = {}
    for recipe in list(best.values())[:_TRIED]:
        if len(points) >= wanted:
            break
        try:
            match = values_of(recipe, bound)
        except AutoPEFTError:  # nothing of it is in this space
            continue
        if match.exact or match.overlap >= NEAR:
            points[str(recipe.name)] = match.values
    if not points:
        return [], None
    names = ", ".join(points)
    line = f"Among the first trials are the portfolio's: {names} (see autopeft recommend)."
    return list(points.values()), line

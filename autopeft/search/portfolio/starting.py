"""What a search tries first: the portfolio's best, as points of its space."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.search.portfolio.choices import Ranking, rank
from autopeft.search.portfolio.evidence import shipped_evidence
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.projection import values_of

__all__ = ["MOST", "portfolio_points"]

MOST = 3
"""Points of a search at most; of a short one a quarter of its trials."""

NEAR = 0.9
"""Share of a recipe's placements that a point of the space has to have in common with it."""

_TRIED = 8  # recipes, from the best one, until enough can be said in the space


def portfolio_points(
    bound: BoundSpace, budget: Budget, rows: int, trials: int, *, leave_out: Collection[str]
) -> tuple[list[dict[str, Any]], str | None]:
    """The portfolio's best recipes as points of a space, best first, and a line that says which.

    A recipe that the space cannot express, nor nearly, is left out. So are those that are not expected to be
    better than plain LoRA: where the evidence does not allow more, there are no points, since every search
    tries LoRA anyway.

    Args:
        rows: of train.
        trials: of the search.
        leave_out: clusters whose trainings are no evidence.
    """
    wanted = min(MOST, trials // 4)
    ranking = rank(shipped_evidence(), bound.spec, budget, rows, leave_out=leave_out)
    points: dict[str, dict[str, Any]] = {}
    for choice in _by_template(ranking)[:_TRIED]:
        if len(points) >= wanted:
            break
        try:
            match = values_of(choice, bound)
        except AutoPEFTError:  # nothing of it is in this space
            continue
        if match.exact or match.overlap >= NEAR:
            points[str(choice.name)] = match.values
    if not points:
        return [], None
    names = ", ".join(points)
    return list(points.values()), f"The search begins with the portfolio: {names} (see autopeft recommend)."


def _by_template(ranking: Ranking) -> list[Any]:
    """The best recipe of each template: two rates of one structure would spend a trial on little."""
    found: dict[str, Any] = {}
    for choice in ranking.best:
        found.setdefault(choice.fitted.template, choice.fitted.recipe)
    return list(found.values())

"""A point of a space as a recipe that can be trained: repaired into the budget, counted and hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.counting import Budget, Counts
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.repair import repair

__all__ = ["Candidate", "candidate"]


@dataclass(frozen=True)
class Candidate:
    """A recipe inside the budget.

    Attributes:
        hash: equal for recipes that train the same.
        point: the space's values after repair.
    """

    recipe: Recipe
    counts: Counts
    hash: str
    point: Mapping[str, Any]


def candidate(
    space: BoundSpace,
    values: Mapping[str, Any],
    budget: Budget,
    *,
    change: Callable[[Recipe], Recipe] | None = None,
) -> Candidate:
    """The recipe that the values of a space stand for, once they are repaired into the budget.

    Args:
        change: alters how the repaired recipe trains, before it is hashed.

    Raises:
        AutoPEFTError: nothing near the values fits, or the values are not the space's.
    """
    found = repair(space, values, budget)
    recipe = found.recipe if change is None else change(found.recipe)
    return Candidate(recipe, found.counts, build_graph(recipe, space.spec).trial_hash(), found.values)

"""A point of a space as a recipe that can be trained: repaired into the budget and its limits, counted and
hashed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from autopeft.counting import Budget, Counts
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.recipe.contents import name_from
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.within import repair_within

__all__ = ["Candidate", "candidate"]


@dataclass(frozen=True)
class Candidate:
    """A recipe inside the budget.

    Attributes:
        recipe: named after what is in it (`autopeft.recipe.contents.name_from`); the one recipe of a space
            without choices keeps the name that its file gives it.
        hash: equal for recipes that train the same, whatever they are called.
        point: the space's values after repair.
        step_cost: what a training step takes, predicted, where LoRA of the same budget on all layers takes 1;
            `None` where it is not predicted.
    """

    recipe: Recipe
    counts: Counts
    hash: str
    point: Mapping[str, Any]
    step_cost: float | None = None

    @property
    def deployed(self) -> int:
        """Deployed parameters."""
        return self.counts.deployed


def candidate(
    space: BoundSpace,
    values: Mapping[str, Any],
    budget: Budget,
    *,
    change: Callable[[Recipe], Recipe] | None = None,
) -> Candidate:
    """The recipe that the values of a space stand for, once they are repaired into the budget, and into the
    limits of a `ResourceBudget`.

    Args:
        change: alters how the repaired recipe trains, before it is hashed.

    Raises:
        AutoPEFTError: nothing near the values fits, or the values are not the space's.
    """
    found = repair_within(space, values, budget)
    recipe = found.recipe if change is None else change(found.recipe)
    digest = build_graph(recipe, space.spec).trial_hash()
    if space.parameters:
        recipe = recipe.model_copy(update={"name": name_from(recipe.layers, recipe.model, digest)})
    return Candidate(recipe, found.counts, digest, found.values)

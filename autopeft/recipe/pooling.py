"""Pooling: the head reads one hidden state, as the model has it, or the mean of all."""

from __future__ import annotations

from typing import Literal

from autopeft.method import get_method
from autopeft.recipe.core import EntryRef, Recipe

__all__ = [
    "MEAN_POOLING",
    "POOLINGS",
    "READINGS",
    "Pooling",
    "pooled",
    "pooling_of",
    "told_by",
    "trained_entries",
    "unpooled",
]

Pooling = Literal["own", "mean"]
POOLINGS: tuple[Pooling, ...] = ("own", "mean")
"""The position that the model's head reads, or the mean of all tokens."""

MEAN_POOLING = Recipe.from_dict({"name": "pooling", "model": [{"mean_pooling": {"pooler": False}}]})

READINGS = [*MEAN_POOLING.to_dict()["model"], "mean_pooling"]
"""The items under `model:` by which a head reads the mean, past the pooler or through it."""

_SAVED = 0.03


def told_by(own: float, mean: float) -> Pooling:
    """The pooling with the lower loss of a linear map on held-out rows; the mean has to save three per
    cent."""
    return "mean" if mean < (1 - _SAVED) * own else "own"


def pooling_of(recipe: Recipe) -> Recipe:
    """The entries of a recipe that set what the head reads, as a recipe; none where the model's own reading
    stays."""
    pools = (entry.item for entry in recipe.entries() if get_method(entry.method).traits.pools)
    return Recipe(name="pooling", model=tuple(pools))


def trained_entries(recipe: Recipe) -> list[EntryRef]:
    """A recipe's entries without those that only set what the head reads and have nothing to train."""
    return [entry for entry in recipe.entries() if not get_method(entry.method).traits.pools]


def pooled(recipe: Recipe, pooling: Pooling) -> Recipe:
    """The recipe with this pooling; unchanged where it sets one itself."""
    if pooling == "own" or pooling_of(recipe).model:
        return recipe
    return Recipe(**{**dict(recipe), "model": (*recipe.model, *MEAN_POOLING.model)})


def unpooled(recipe: Recipe) -> Recipe:
    """The recipe without the entries that set what the head reads."""
    apart = pooling_of(recipe).model
    return Recipe(**{**dict(recipe), "model": tuple(i for i in recipe.model if i not in apart)})

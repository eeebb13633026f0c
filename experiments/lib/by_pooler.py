"""Recipes whose heads read the mean of all tokens through BERT's pooler, as recordings have them that were
made before heads read past it."""

from __future__ import annotations

from autopeft import Recipe
from autopeft.recipe.pooling import Pooling, pooled, pooling_of

__all__ = ["BY_POOLER", "read_as"]

BY_POOLER = "mean-by-pooler"


def read_as(recipe: Recipe, reading: Pooling | str) -> Recipe:
    """The recipe whose head reads so (`own`, `mean` or `mean-by-pooler`), unless it says so itself."""
    if reading != BY_POOLER:
        return pooled(recipe, reading)  # type: ignore[arg-type]
    if pooling_of(recipe).model:
        return recipe
    means = Recipe.from_dict({"name": "pooling", "model": ["mean_pooling"]})
    return Recipe(**{**dict(recipe), "model": (*recipe.model, *means.model)})

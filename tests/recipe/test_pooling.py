"""What the head of a recipe's model reads, said of a recipe and read from it."""

from __future__ import annotations

from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooled, pooling_of, trained_entries, unpooled

LORA = Recipe.from_dict(
    {"name": "r", "layers": [{"attach": ["lora"]}], "model": [{"prompt_tuning": {"length": 2}}]}
)


def test_a_recipe_is_pooled_once_and_back_again() -> None:
    mean = pooled(LORA, "mean")
    assert mean.methods == ("lora", "prompt_tuning", "mean_pooling")
    assert mean == Recipe.from_dict(mean.to_dict())
    assert mean.hash() != LORA.hash()
    assert pooled(mean, "mean") is mean
    assert pooled(LORA, "own") is LORA
    assert pooled(mean, "own") is mean  # it says so itself
    assert unpooled(mean) == LORA
    assert unpooled(LORA) == LORA


def test_what_settles_the_reading_stands_apart_from_what_trains() -> None:
    mean = pooled(LORA, "mean")
    assert pooling_of(mean).methods == ("mean_pooling",)
    assert pooling_of(LORA).entries() == []
    assert [entry.method for entry in trained_entries(mean)] == ["lora", "prompt_tuning"]
    assert trained_entries(pooled(Recipe(name="head"), "mean")) == []

from __future__ import annotations

import random

import pytest
from support.tiny import tiny_config

from autopeft.backbones import spec_of
from autopeft.counting import Budget, count
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.space.candidate import candidate
from autopeft.search.space.space import Space

SPEC = spec_of(tiny_config("bert"))
LORA = Space.from_yaml("layers: [{attach: [{lora: {rank: {choice: [1, 2, 4, 64]}}}]}]").bind(SPEC)


def test_values_become_a_recipe_inside_the_budget_with_counts_and_hash() -> None:
    bound, budget, rng = Space.named("default").bind(SPEC), Budget.parse("10%"), random.Random(0)
    _, most = budget.limits(SPEC)
    for _ in range(20):
        found = candidate(bound, bound.sample(rng), budget)
        assert found.counts.deployed <= most
        assert found.counts == count(found.recipe, SPEC)
        assert found.hash == build_graph(found.recipe, SPEC).trial_hash()


def test_the_point_is_what_was_trained_and_stays_itself() -> None:
    budget = Budget.parse("10%")
    found = candidate(LORA, {"lora.rank": 64}, budget)
    assert found.point["lora.rank"] < 64
    assert candidate(LORA, found.point, budget) == found


def test_the_hash_is_that_of_the_changed_recipe() -> None:
    def faster(recipe: Recipe) -> Recipe:
        training = recipe.training.model_copy(update={"learning_rate": 0.5})
        return recipe.model_copy(update={"training": training})

    budget, values = Budget.parse("50%"), {"lora.rank": 2}
    plain, changed = candidate(LORA, values, budget), candidate(LORA, values, budget, change=faster)
    assert changed.recipe.training.learning_rate == 0.5
    assert changed.hash == build_graph(changed.recipe, SPEC).trial_hash() != plain.hash
    assert (changed.counts, changed.point) == (plain.counts, plain.point)


def test_where_nothing_fits_it_says_so() -> None:
    with pytest.raises(AutoPEFTError):
        candidate(LORA, {"lora.rank": 1}, Budget.parse("3"))


def test_a_recipe_is_named_after_what_is_in_it() -> None:
    bound, budget, rng = Space.named("default").bind(SPEC), Budget.parse("10%"), random.Random(0)
    names: dict[str, str] = {}
    for _ in range(60):
        found = candidate(bound, bound.sample(rng), budget)
        stem, _, digits = found.recipe.name.rpartition("-")
        assert digits == found.hash[:6]
        assert stem.split("+")[0] == found.recipe.methods[0]
        assert names.setdefault(found.recipe.name, found.hash) == found.hash, "one name, one recipe"
        again = Recipe.from_yaml(found.recipe.to_yaml())
        assert again == found.recipe, "the name can stand in a file"
    assert len(names) > 40


def test_a_name_changes_no_hash() -> None:
    """Neither does any other thing that a recipe is called: trials are known again by their hashes."""
    found = candidate(LORA, {"lora.rank": 2}, Budget.parse("50%"))
    other = found.recipe.model_copy(update={"name": "default", "reference": "a paper"})
    assert other.name != found.recipe.name
    assert other.hash() == found.recipe.hash()
    assert other.structure_hash() == found.recipe.structure_hash()
    assert build_graph(other, SPEC).trial_hash() == found.hash
    assert build_graph(other, SPEC).hash() == build_graph(found.recipe, SPEC).hash()


def test_where_nothing_is_searched_the_name_of_the_file_stays() -> None:
    fixed = Space.from_yaml("{name: mine, layers: [{attach: [{lora: {rank: 2}}]}]}").bind(SPEC)
    assert candidate(fixed, {}, Budget.parse("50%")).recipe.name == "mine"

from __future__ import annotations

import pytest
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space

SPEC = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)


def methods(name: str, count: int = 10, budget: str = "5%") -> list[list[str]]:
    points = starting_points(Space.named(name).bind(SPEC), count)
    recipes = [repair(Space.named(name), p, Budget.parse(budget), SPEC).recipe for p in points]
    return [[entry.method for entry in recipe.entries()] for recipe in recipes]


def test_the_default_space_starts_with_all_then_each_method_alone() -> None:
    together, *alone = methods("default")
    assert len(together) > 3
    assert [m for [m] in alone[:4]] == ["lora", "serial_adapter", "parallel_adapter", "p_tuning_v2"]


@pytest.mark.parametrize("name", ["autopeft", "lora"])
def test_every_built_in_space_has_a_start(name: str) -> None:
    assert methods(name, count=3)[0]


def test_lora_alone_is_nearly_as_large_as_the_budget_in_every_layer() -> None:
    lora = starting_points(Space.named("default").bind(SPEC), 2)[1]
    fixed = repair(Space.named("default"), lora, Budget.parse("5%"), SPEC)
    assert fixed.recipe.layers[0].at == "all"
    assert fixed.counts.deployed > Budget.parse("5%").limits(SPEC)[1] / 2.1

from __future__ import annotations

import pytest
from transformers import BertConfig

from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.search.space.initial_points import starting_points, upper_points
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space

SPEC = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)
DEEP = spec_of(
    BertConfig(
        hidden_size=64, num_hidden_layers=8, num_attention_heads=4, intermediate_size=128, vocab_size=500
    )
)


def methods(name: str, count: int = 10, budget: str = "5%") -> list[list[str]]:
    points = starting_points(Space.named(name).bind(SPEC), count)
    recipes = [repair(Space.named(name).bind(SPEC), p, Budget.parse(budget)).recipe for p in points]
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
    fixed = repair(Space.named("default").bind(SPEC), lora, Budget.parse("5%"))
    assert fixed.recipe.layers[0].at == "all"
    assert fixed.counts.deployed > Budget.parse("5%").limits(SPEC)[1] / 2.1


def test_cheap_starts_leave_the_lower_layers_alone() -> None:
    """Each method alone on the last half of three layers, and on no quarter, as there is none."""
    space = Space.named("default").bind(SPEC)
    recipes = [repair(space, p, Budget.parse("5%")).recipe for p in upper_points(space, 3)]
    assert [[e.method for e in r.entries()] for r in recipes] == [
        ["lora"],
        ["serial_adapter"],
        ["parallel_adapter"],
    ]
    assert [r.layers[0].at for r in recipes] == [(2,)] * 3


def test_cheap_starts_are_the_same_where_each_layer_has_a_switch() -> None:
    space = Space.named("autopeft").bind(DEEP)
    recipes = [repair(space, p, Budget.parse("5%")).recipe for p in upper_points(space, 3)]
    assert [(r.entries()[0].method, r.layers[0].at) for r in recipes] == [
        ("serial_adapter", (4, 5, 6, 7)),
        ("parallel_adapter", (4, 5, 6, 7)),
        ("serial_adapter", (6, 7)),
    ]


def test_a_space_without_a_choice_of_layers_has_no_cheap_start() -> None:
    assert upper_points(Space.named("lora").bind(SPEC), 4) == []

"""What the comparison of strategies compares, and what it concludes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import BertConfig

from autopeft.counting import count
from autopeft.recipe import Recipe
from autopeft.search.space.space import Space

MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
FOLDER = "strategies"


@pytest.fixture(scope="module")
def ours(load: Callable[[str], Any]) -> SimpleNamespace:
    names: dict[str, Any] = {}
    for module in ("contenders", "run"):
        names |= {name: value for name, value in vars(load(module)).items() if not name.startswith("__")}
    return SimpleNamespace(**names)


@pytest.fixture
def offline(ours: SimpleNamespace, load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("contenders")
    monkeypatch.setattr(module, "resolve_model", lambda name: name)
    monkeypatch.setattr(module, "load_config", lambda source: MINILM)


@pytest.mark.parametrize("budget", ["0.5%", "9216"])
@pytest.mark.usefixtures("offline")
def test_random_structures_are_as_large_as_the_budget_and_each_draw_has_others(
    ours: SimpleNamespace, budget: str
) -> None:
    spec = ours.spec_of(MINILM)
    most = ours.Budget.parse(budget).limits(spec)[1]
    found = [recipe for draw in ours.DRAWS for recipe in ours.random_structures(budget, draw)]
    assert len({recipe.hash() for recipe in found}) > len(found) // 2
    assert all(0.8 * most < count(recipe, spec).deployed <= most for recipe in found)


@pytest.mark.parametrize("budget", ["0.5%", "9216"])
@pytest.mark.usefixtures("offline")
def test_tuned_lora_fits(ours: SimpleNamespace, budget: str) -> None:
    bound = Space.from_yaml(ours.lora_space(budget)).bind(ours.spec_of(MINILM))
    recipe = bound.materialize(bound.middle())
    most = ours.Budget.parse(budget).limits(bound.spec)[1]
    assert 0.8 * most < count(recipe, bound.spec).deployed <= most
    assert bound.cardinality() == 3


def test_rates_move_together_and_the_heads_stay(ours: SimpleNamespace) -> None:
    training = {
        "learning_rate": 1e-2,
        "groups": {"ia3": {"learning_rate": 2e-2}, "head": {"learning_rate": 3e-2}},
    }
    recipe = Recipe.from_dict({"name": "r", "layers": [{"attach": ["ia3"]}], "training": training})
    told = ours._at(recipe, 3.0).to_dict()["training"]
    assert told["learning_rate"] == pytest.approx(3e-2)
    assert told["groups"]["ia3"]["learning_rate"] == pytest.approx(6e-2)
    assert told["groups"]["head"]["learning_rate"] == pytest.approx(3e-2)


def rows(gain: float, seconds: float, ours: SimpleNamespace) -> list[dict[str, Any]]:
    """Each contender on each cell, gates so many points above the others."""
    return [
        {
            "draw": draw, "budget": budget, "task": task, "contender": name,
            "test": [0.8 + (gain / 100 if name == "gates" else 0) + i / 1000],
            "search_cpu": seconds if name == "gates" else 100.0,
            **({"estimated": [1, 2, 3], "trained": [2, 4, 3]} if (name, draw) == ("supernet", 0) else {}),
            **({"probabilities": [0.1, 0.2 + draw / 100, 0.3]} if name == "gates" else {}),
        }
        for draw in ours.DRAWS for budget in ours.BUDGETS
        for i, task in enumerate(ours.TASKS) for name in ours.CONTENDERS
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("gain", "seconds", "claim", "stop"),
    [
        (0.0, 30.0, "the claim holds", "gates is not recommended"),
        (1.0, 30.0, "the claim holds", "gates is recommended"),
        (0.0, 40.0, "does not hold", "gates is not recommended"),
        (-0.6, 30.0, "does not hold", "gates is not recommended"),
    ],
)
def test_what_is_concluded(ours: SimpleNamespace, gain: float, seconds: float, claim: str, stop: str) -> None:
    found = rows(gain, seconds, ours)
    assert list(ours.missing(found)) == []
    first, second, third = ours.claims(found)
    assert claim in first
    assert stop in second
    assert "correlate by 0.50. By the stop rule the strategy supernet is not recommended" in third
    assert ours.order_over_draws(found) == pytest.approx(1.0)
    assert f"{gain:+.2f} ± 0.00" in ours.table(found, "9216")

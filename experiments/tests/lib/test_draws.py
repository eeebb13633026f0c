"""The recipes that are compared, and what peft says of them."""

from __future__ import annotations

from typing import Any

import pytest
from lib.draws import draw, lowest_layer, peft_words, rate_of
from support.tiny import tiny_config
from transformers import BertConfig

from autopeft import Recipe, spec_of


def _on(item: Any, at: str = "1-2", **more: Any) -> Recipe:
    return Recipe.from_dict({"name": "x", "layers": [{"at": at, "attach": [item]}], **more})


def test_the_draw_is_fixed_and_fits() -> None:
    spec = spec_of(BertConfig(vocab_size=3000, hidden_size=96, num_hidden_layers=6, intermediate_size=384))
    first, second = (draw(8, "2%", spec) for _ in range(2))
    assert [d.recipe for d in first] == [d.recipe for d in second]
    assert len({d.recipe.hash() for d in first}) == 8
    assert max(d.counts.deployed for d in first) <= 0.02 * spec.parameters
    assert [d.recipe for d in draw(3, "2%", spec)] == [d.recipe for d in first[:3]]


@pytest.mark.parametrize(
    ("recipe", "k"),
    [
        (_on("lora"), 1),
        (_on("prefix_tuning", at="last 1"), 2),
        (_on("lora", model=[{"prompt_tuning": {"length": 2}}]), 0),
        (Recipe.from_dict({"name": "x", "model": ["bitfit"]}), 0),
        (Recipe.from_dict({"name": "x"}), 3),
    ],
)
def test_the_lowest_layer_that_a_recipe_alters(recipe: Recipe, k: int) -> None:
    assert lowest_layer(recipe, spec_of(tiny_config("bert"))) == k


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe.from_dict({"name": "x", "layers": [{"attach": ["lora", "ia3"]}]}),
        _on({"gate": ["lora"]}),
        _on("serial_adapter"),
        _on({"lora": {"rank_stabilized": True}}),
        _on("lora", training={"policies": ["lora_plus"]}),
        Recipe.from_dict({"name": "x", "model": ["bitfit"]}),
    ],
)
def test_what_peft_cannot_say(recipe: Recipe) -> None:
    assert peft_words(recipe, spec_of(tiny_config("bert"))) is None


def test_learning_rates_are_those_of_the_recipe() -> None:
    recipe = _on("lora", training={"learning_rate": 0.1, "groups": {"lora": {"learning_rate": 0.2}}})
    assert rate_of(recipe, "lora") == 0.2
    assert rate_of(recipe, "head") == 0.1

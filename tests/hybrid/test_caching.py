"""Whether a model with what is attached to it generates from a cache."""

from __future__ import annotations

from typing import Any

import pytest
from support.cases import recipe_of
from support.tiny import DECODERS, tiny_inputs, tiny_model

from autopeft.errors import CompositionError
from autopeft.hybrid import attach
from autopeft.hybrid.caching import generates_from_cache
from autopeft.recipe import Recipe


def recipe(*items: Any) -> Recipe:
    return Recipe.from_dict({"name": "r", "model": list(items)})


def prompt(length: int) -> Recipe:
    return recipe({"prompt_tuning": {"length": length}})


def test_one_hybrid_or_none() -> None:
    model = tiny_model("llama")
    assert generates_from_cache(model, 3)
    with attach(model, recipe()):
        assert generates_from_cache(model, 3)
    with attach(model, prompt(3)):
        assert generates_from_cache(model, 3)
    with attach(model, recipe({"smop": {"length": 2}})):
        assert not generates_from_cache(model, 3)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("case", ["gate", "route-sequence"])
def test_what_it_says_is_what_generation_does(case: str, name: str) -> None:
    model = tiny_model(name)
    inputs = {k: v for k, v in tiny_inputs(name).items() if k != "decoder_input_ids"}
    with attach(model, recipe_of(case), seed=0):
        assert not generates_from_cache(model, 3)
        with pytest.raises(CompositionError, match="use_cache=False"):
            model.generate(**inputs, max_new_tokens=3, use_cache=True)

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from autopeft.errors import RecipeError
from autopeft.recipe import Recipe
from autopeft.recipe.optimizer import OPTIMIZERS, SGD, Adafactor, Adam, AdamW


def recipe(optimizer: Any = None, **training: Any) -> Recipe:
    body = training if optimizer is None else {**training, "optimizer": optimizer}
    return Recipe.from_dict({"name": "r", "layers": [{"attach": ["lora"]}], "training": body})


def test_a_default_optimizer_changes_neither_file_nor_hash() -> None:
    bare = recipe()
    same = ({}, {"name": "adamw"}, {"betas": [0.9, 0.999], "epsilon": 1e-8, "clip": "all"})
    for optimizer in same:
        assert recipe(optimizer) == bare
        assert recipe(optimizer).hash() == bare.hash()
        assert "training" not in recipe(optimizer).to_dict()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"betas": [0.9, 0.98], "epsilon": 1e-6}, AdamW(betas=(0.9, 0.98), epsilon=1e-6)),
        ({"name": "adam", "epsilon": 1e-6}, Adam(epsilon=1e-6)),
        ({"name": "sgd", "momentum": 0.9, "nesterov": True}, SGD(momentum=0.9, nesterov=True)),
        ({"name": "adafactor", "scale_parameter": True}, Adafactor(scale_parameter=True)),
        ({"clip": "group"}, AdamW(clip="group")),
        ({"name": "sgd"}, SGD()),
    ],
)
def test_an_optimizer_is_read_written_and_hashed(written: dict[str, Any], read: Any) -> None:
    found = recipe(written)
    assert found.training.optimizer == read
    assert found.to_dict()["training"] == {"optimizer": written}
    assert Recipe.from_yaml(found.to_yaml()) == found
    assert found.hash() != recipe().hash()
    assert found.structure_hash() == recipe().structure_hash()


def test_every_name_is_that_of_its_class() -> None:
    assert all(model().name == name for name, model in OPTIMIZERS.items())


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"name": "adamv"}, "optimizer.name: there is no optimizer 'adamv'. Did you mean 'adam"),
        ({"name": 3}, "there is no optimizer 3"),
        ("adam", "'optimizer' is a mapping, but got text; write {name: adamw"),
        ({"beta": [0.9, 0.98]}, "optimizer.beta: unknown key 'beta'. Did you mean 'betas'?"),
        ({"name": "sgd", "betas": [0.9, 0.98]}, "the optimizer 'sgd' takes: name, clip, momentum, nesterov"),
        ({"betas": [0.9, 1.0]}, "optimizer.betas[1]: should be less than 1, but got 1.0"),
        ({"betas": [0.9]}, "optimizer.betas"),
        ({"epsilon": "1e-8"}, "optimizer.epsilon: should be a valid number, but got '1e-8'"),
        ({"name": "sgd", "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"clip": "groups"}, "optimizer.clip: should be 'all' or 'group', but got 'groups'"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(optimizer: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(optimizer)
    assert message in str(error.value)


def test_a_line_is_named() -> None:
    text = "name: r\nlayers:\n- attach: [lora]\ntraining:\n  optimizer:\n    epsilon: 2\n"
    with pytest.raises(RecipeError, match=r"r\.yaml:6: training\.optimizer\.epsilon: should be less than"):
        Recipe.from_yaml(text, "r.yaml")


def test_options_are_strict_in_code_too() -> None:
    with pytest.raises(ValidationError):
        AdamW(epsilon=0.0)
    with pytest.raises(ValidationError):
        SGD(betas=(0.9, 0.9))  # type: ignore[call-arg]

from __future__ import annotations

from typing import Any

import pytest

from autopeft.errors import RecipeError
from autopeft.recipe import Recipe, names
from autopeft.recipe.training import address

BARE = {"prefix_tuning": {"length": 2, "reparameterization": None}}
WITH_MLP = {"prefix_tuning": {"length": 2, "reparameterization": 4}}
NAMED: list[Any] = ["lora", {"lora": {"rank": 2}, "as": "top"}, WITH_MLP]


def recipe(groups: dict[str, Any], attach: Any = NAMED, **training: Any) -> Recipe:
    tree = {"name": "r", "layers": [{"attach": attach}], "training": {**training, "groups": groups}}
    return Recipe.from_dict(tree)


def test_an_address_is_an_entry_and_a_part() -> None:
    assert [address(group) for group in ("lora", "lora.up", "head")] == [
        ("lora", ""), ("lora", "up"), ("head", ""),
    ]  # fmt: skip


def test_settings_come_from_part_then_module_then_entry_then_method_then_section() -> None:
    groups = {
        "lora": {"learning_rate": 0.2, "weight_decay": 0.02},
        "top": {"learning_rate": 0.3},
        "lora.up": {"weight_decay": 0.04},
        "top.down": {"learning_rate": 0.5},
    }
    section = recipe(groups, learning_rate=0.1, weight_decay=0.01).training
    assert section.settings("ia3", "ia3") == (0.1, 0.01)
    assert section.settings("lora", "lora") == (0.2, 0.02)
    # The entry's group stands in place of the method's, and what it leaves out is the section's.
    assert section.settings("top", "lora") == (0.3, 0.01)
    assert section.settings("lora", "lora", part="up") == (0.2, 0.04)
    assert section.settings("top", "lora", part="up") == (0.3, 0.04)
    assert section.settings("top", "lora", part="down") == (0.5, 0.01)
    own = {"lr": 0.7, "weight_decay": 0.0}
    assert section.settings("top", "lora", own=own) == (0.7, 0.0)
    assert section.settings("top", "lora", part="up", own=own) == (0.7, 0.04)
    slower = {"lr_factor": 0.5}
    assert section.settings("ia3", "ia3", own=slower).learning_rate == 0.05
    assert section.settings("top", "lora", own=slower).learning_rate == 0.15
    assert section.settings("top", "lora", part="up", own=slower).learning_rate == 0.15
    assert section.settings("top", "lora", part="down", own=slower).learning_rate == 0.5
    assert section.parts("top", "lora") == ("up", "down")
    assert section.parts("lora") == ("up",)


def test_groups_of_parts_are_written_and_hashed() -> None:
    whole, up = recipe({}), recipe({"lora.up": {"learning_rate": 0.1}})
    assert Recipe.from_yaml(up.to_yaml()) == up
    assert up.to_dict()["training"] == {"groups": {"lora.up": {"learning_rate": 0.1}}}
    others = [recipe({"lora.down": {"learning_rate": 0.1}}), recipe({"lora.up": {"learning_rate": 0.2}})]
    assert len({r.hash() for r in (whole, up, *others)}) == 4


def test_the_hidden_layers_of_a_head_have_a_group_of_their_own() -> None:
    whole = recipe({"head": {"learning_rate": 0.1}})
    apart = recipe({"head": {"learning_rate": 0.1}, "head.hidden": {"learning_rate": 0.01}})
    section = apart.training
    assert [section.settings("head", part=p).learning_rate for p in ("", "hidden")] == [0.1, 0.01]
    assert Recipe.from_yaml(apart.to_yaml()) == apart
    slower = recipe({"head": {"learning_rate": 0.1}, "head.hidden": {"learning_rate": 0.001}})
    assert len({r.hash() for r in (whole, apart, slower)}) == 3


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("lora.upp", "'lora' has no part 'upp'. Did you mean 'up'? Write 'lora' for all of it, or lora.down"),
        ("top.mlp", "'top' has no part 'mlp'. Write 'top' for all of it, or top.down, top.up."),
        ("prefix_tuning.row", "'prefix_tuning' has no part 'row'. Did you mean 'rows'?"),
        ("lora.", "'lora' has no part ''."),
        ("lor.up", "no entry is called 'lor'. Did you mean 'lora'"),
        ("head.weight", "'head' has no part 'weight'. Write 'head' for all of it, or head.hidden."),
    ],
)
def test_a_part_that_no_such_method_has_is_an_error_of_the_file(group: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe({group: {"learning_rate": 0.1}})
    assert f"training.groups.{group}: {message}" in str(error.value)


def test_unknown_settings_of_a_group_are_told() -> None:
    with pytest.raises(RecipeError, match=r"training\.groups\.lora\.up\.lr: unknown key 'lr'"):
        recipe({"lora.up": {"lr": 0.1}})


def test_the_config_says_which_parts_there_are_and_one_entry_with_a_part_is_enough_for_its_method() -> None:
    by_method: dict[str, Any] = {"prefix_tuning.mlp": {"learning_rate": 0.1}}
    message = r"'prefix_tuning' has no part 'mlp'\. Write 'prefix_tuning' for all of it, or prefix_"
    with pytest.raises(RecipeError, match=message):
        recipe(by_method, [BARE])
    other = {**BARE, "as": "bare"}
    assert recipe(by_method, [WITH_MLP, other]).training.groups.keys() == by_method.keys()
    with pytest.raises(RecipeError, match=r"'bare' has no part 'mlp'"):
        recipe({"bare.mlp": {"learning_rate": 0.1}}, [WITH_MLP, other])


def test_parts_of_the_head_make_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces are read with hundreds of entries, whose methods take long to make."""
    found = recipe({}, ["lora", "ia3"])
    entries = names.named_entries(found.layers, found.model)
    assert names.parts_named(["lora.up"], entries).keys() == {"lora", "ia3", "head"}
    monkeypatch.setattr(names, "get_method", lambda name: pytest.fail(f"{name} is made"))
    assert names.parts_named(["lora", "head", "head.hidden"], entries) == {"head": ("hidden",)}

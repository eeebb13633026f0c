from __future__ import annotations

from typing import Any

import pytest

from autopeft.errors import RecipeError
from autopeft.recipe import InputItem, Recipe

HASH = "0123456789abcdef" * 4


def tree(inputs: Any = None, start: Any = "source", **more: Any) -> dict[str, Any]:
    inputs = {"source": "runs/one"} if inputs is None else inputs
    return {"inputs": inputs, "model": [{"prompt_tuning": {"length": 4}, "from": start, **more}]}


def message(data: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(data)
    return str(caught.value)


def test_inputs_and_starts_are_read_and_written_as_they_were() -> None:
    inputs = {
        "source": "runs/one",
        "other": {"run": "2026-01-31-sst2", "sha256": HASH},
        "third": {"folder": "a/b", "sha256": HASH},
    }
    recipe = Recipe.from_dict(tree(inputs, ["source", "other.small", "third"], **{"as": "mine"}))
    assert recipe.inputs["source"] == InputItem(folder="runs/one")
    assert recipe.inputs["other"] == InputItem(run="2026-01-31-sst2", sha256=HASH)
    assert recipe.entries()[0].item.start == ("source", "other.small", "third")
    assert recipe.to_dict()["inputs"] == inputs
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_a_recipe_without_inputs_is_written_and_hashed_as_before() -> None:
    recipe = Recipe.from_dict({"layers": [{"attach": ["lora"]}]})
    assert "inputs" not in recipe.to_dict()
    # As it was before recipes had inputs.
    assert recipe.hash() == "3d92ee800a74ed7f08bf2673f8c9d0a71594fc43af4171cb88a976d74fee36fb"


def test_the_hash_counts_the_content_and_not_the_place() -> None:
    def of(where: dict[str, str], sha256: str, name: str = "source") -> str:
        return Recipe.from_dict(tree({name: {**where, "sha256": sha256}}, name)).hash()

    first = of({"folder": "a"}, HASH)
    assert (
        first == of({"folder": "b/c"}, HASH) == of({"run": "x"}, HASH) == of({"folder": "a"}, HASH, "other")
    )
    assert first != of({"folder": "a"}, HASH[::-1])
    assert first != Recipe.from_dict({"model": [{"prompt_tuning": {"length": 4}}]}).hash()


def test_the_hash_of_a_recipe_with_an_open_input_is_not_settled() -> None:
    recipe = Recipe.from_dict(tree())
    with pytest.raises(RecipeError, match=r"source.*pinned"):
        recipe.hash()
    assert (
        recipe.pinned({"source": HASH}).hash()
        == Recipe.from_dict(tree({"source": {"run": "x", "sha256": HASH}})).hash()
    )
    assert (
        recipe.structure_hash()
        == Recipe.from_dict({"model": [{"prompt_tuning": {"length": 4}}]}).structure_hash()
    )


@pytest.mark.parametrize(
    "where",
    ["/etc", "../up", "a/../../b", "~/x", "", " ", "a\nb", "a\\b", "x" * 1001],
)
def test_a_path_that_leads_elsewhere_is_refused(where: str) -> None:
    assert "inputs.source" in message(tree({"source": where}))
    assert "inputs.source.folder" in message(tree({"source": {"folder": where}}))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "mapping"),
        ({"source": 3}, "an input is a folder"),
        ({"source": {"folder": "a", "run": "b"}}, "a folder, a run or what is in the bank"),
        ({"source": {"sha256": HASH}}, "a folder, a run or what is in the bank"),
        ({"source": {"folder": "a", "sha": HASH}}, "sha256"),
        ({"source": {"run": "a/b"}}, "autopeft runs"),
        ({"source": {"folder": "a", "sha256": HASH[1:]}}, "64 digits"),
        ({"source": {"folder": "a", "sha256": HASH.upper()}}, "64 digits"),
        ({"no name": "a"}, "letters, digits"),
        ({f"i{i}": "a" for i in range(65)}, "at most 64"),
        ({"source": "a", "other": "b"}, "no entry starts from 'other'"),
        ({"sauce": "a"}, "'source'"),
        ({}, "List it under 'inputs:'"),
    ],
)
def test_what_is_wrong_with_inputs_is_said(inputs: Any, words: str) -> None:
    assert words in message(tree(inputs))


@pytest.mark.parametrize("start", [3, [], ["source", "source"], "a b", "source.", ["source", 3], {"a": 1}])
def test_a_from_names_inputs(start: Any) -> None:
    assert "'from'" in message(tree(start=start))


def test_only_entries_start_from_something() -> None:
    item = {"gate": ["lora"], "from": "source"}
    assert "children" in message({"inputs": {"source": "a"}, "layers": [{"attach": [item]}]})
    policy = {"training": {"policies": [{"lora_plus": {}, "from": "source"}]}}
    assert "policy" in message({"layers": [{"attach": ["lora"]}], **policy})


def test_what_needs_an_input_has_one() -> None:
    assert "from: NAME" in message({"model": ["tpt"]})

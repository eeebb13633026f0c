"""Fixed recipes by name, also by one that is no word."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopeft.errors import RecipeError
from autopeft.recipe import Recipe, recipe_names
from autopeft.recipe.library import built_in, find_text


def test_names_are_those_of_the_files() -> None:
    assert "compacter++" in recipe_names()
    assert list(recipe_names()) == sorted(recipe_names())
    for name in recipe_names():
        assert Recipe.named(name).name == name


def test_a_name_with_plus_signs_is_a_name() -> None:
    text, source = built_in("compacter++")
    assert source == "compacter++.yaml"
    assert find_text("compacter++") == (text, source)
    recipe = Recipe.load("compacter++")
    assert recipe == Recipe.named("compacter++")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", ["compacter+", "compacter++.", "Compacter++", "compacter"])
def test_near_names_are_hinted(name: str) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'compacter\+\+'"):
        find_text(name)


def test_a_file_of_that_name_comes_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mam").write_text("autopeft: 2\nname: other\nlayers: [{attach: [lora]}]\n", encoding="utf-8")
    assert Recipe.load("mam").name == "mam"
    assert Recipe.load("./mam").name == "other"

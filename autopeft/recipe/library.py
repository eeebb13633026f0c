"""Built-in recipes (`methods/hybrid/*.yaml`) and recipes in files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from autopeft.errors import RecipeError, near
from autopeft.foreign import local_path
from autopeft.recipe.yaml_text import read_text

__all__ = ["built_in", "find_text", "recipe_names"]

_PACKAGE = "autopeft.methods.hybrid"


def recipe_names() -> tuple[str, ...]:
    """Names of the built-in recipes, sorted."""
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in files(_PACKAGE).iterdir() if f.name.endswith(".yaml"))
    )


def built_in(name: str) -> tuple[str, str]:
    """Text and source name of a built-in recipe.

    Raises:
        RecipeError: there is none of that name.
    """
    names = recipe_names()
    if name not in names:
        raise RecipeError(
            f"There is no built-in recipe {name!r}.{near(name, names)} There are: {', '.join(names)}."
        )
    return files(_PACKAGE).joinpath(f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml"


def find_text(ref: str | Path) -> tuple[str, str]:
    """Text and source name of a recipe given as a file or by a built-in name (which goes first).

    Raises:
        RecipeError: there is neither.
    """
    text = str(ref)
    if text in recipe_names():
        return built_in(text)
    path = local_path(text, RecipeError)
    if path.is_file():
        return read_text(path), text
    if path.is_dir():
        raise RecipeError(f"{text} is a folder; name the recipe file in it, such as {path / 'recipe.yaml'}.")
    if path.suffix.lower() in (".yaml", ".yml", ".json") or len(path.parts) > 1:
        siblings = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
        raise RecipeError(f"There is no recipe file {text!r}.{near(path.name, siblings)}")
    names = recipe_names()
    raise RecipeError(
        f"{text!r} is neither a recipe file nor a built-in recipe.{near(text, names)} "
        f"Built in: {', '.join(names)}."
    )

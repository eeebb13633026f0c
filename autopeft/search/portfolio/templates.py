"""Recipes with one free size, which a backbone and a budget fill.

A recipe that was good on six layers of 384 says nothing literal about twelve layers of 768: its ranks and
layer indices belong to one backbone. A template keeps what carries over (which methods, on which share of the
layers, at which rate for which size) and leaves the size to the budget.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any

from autopeft.counting import Budget, Counts, count
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.recipe.yaml_text import read_yaml
from autopeft.search.space.space import Space
from autopeft.search.space.templates import Const, Scaled
from autopeft.spec import BackboneSpec

__all__ = ["FittedRecipe", "Template", "fitted", "templates"]

_FILE = "templates.yaml"
_FASTEST = 3e-2
_HEAD = {"head": 1e-2, "head.hidden": 3e-4}


@dataclass(frozen=True)
class Rates:
    """Learning rates of a template: those at a `size`, and larger ones for smaller sizes, in proportion to
    size^-power; without a power the same for all sizes."""

    at: tuple[float, ...]
    size: int = 1
    power: float = 0.0

    def of(self, size: int | None) -> list[float]:
        """The rates at a size, as a search space scales them."""
        scaled = Scaled(Const(None), Const(None), self.size, self.power, _FASTEST)
        return [scaled.of(rate, self.size if size is None else size) for rate in self.at]


@dataclass(frozen=True)
class Template:
    """A recipe with one free size.

    Attributes:
        name: what it is called in tables.
        sizes: what `$size` may be, ascending; empty where the recipe has none.
        rates: learning rates, each of which makes a recipe of its own.
        tree: `layers`, `model` and `groups` (name to learning rate), as a space's file has them.
    """

    name: str
    sizes: tuple[int, ...]
    rates: Rates
    tree: Mapping[str, Any]

    @cached_property
    def space(self) -> Space:
        """The template as a search space, whose only parameter is the size."""
        groups = {name: {"learning_rate": rate} for name, rate in {**_HEAD, **self.tree["groups"]}.items()}
        told = {
            "autopeft": 2,
            "name": "portfolio",
            "vars": {"size": {"choice": list(self.sizes)}},
            "layers": self.tree["layers"],
            "model": self.tree["model"],
            "training": {"groups": groups},
        }
        if not self.sizes:
            del told["vars"]
        return Space.from_yaml(json.dumps(told), f"{_FILE}: {self.name}")


@dataclass(frozen=True)
class FittedRecipe:
    """A template at a size and a rate.

    Attributes:
        template: the template's name.
        rate: which of its rates, from 0.
        size: the size that fits the budget, `None` for a template without one.
        hash: equal for recipes that train the same.
    """

    template: str
    rate: int
    size: int | None
    recipe: Recipe
    counts: Counts
    hash: str


@lru_cache(maxsize=1)
def templates() -> tuple[Template, ...]:
    """The templates of the package, in the order of their file."""
    text = files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    return tuple(_template(name, tree) for name, tree in read_yaml(text, _FILE).items())


def _template(name: str, tree: Mapping[str, Any]) -> Template:
    rates = tree["rates"]
    return Template(
        name,
        tuple(tree.get("sizes", ())),
        Rates(tuple(rates["at"]), rates.get("size", 1), rates.get("power", 0.0)),
        {
            "layers": tree.get("layers", []),
            "model": tree.get("model", []),
            "groups": tree.get("groups", {}),
        },
    )


def fitted(template: Template, spec: BackboneSpec, budget: Budget) -> list[FittedRecipe]:
    """The template's recipes on a backbone, one for each rate, as large as the budget's upper limit allows;
    none where even the smallest is too large, or the backbone lacks a site that it needs."""
    most = budget.limits(spec)[1]
    for size, recipe in _by_size(template, spec):
        if count(recipe, spec).deployed <= most:
            return [_at_rate(template, i, size, recipe, spec) for i in range(len(template.rates.at))]
    return []


def _by_size(template: Template, spec: BackboneSpec) -> Iterator[tuple[int | None, Recipe]]:
    """The template's recipes from the largest to the smallest."""
    bound = template.space.bind(spec)
    for size in reversed(template.sizes) if template.sizes else (None,):
        try:
            yield size, bound.materialize({} if size is None else {"size": size})
        except EmptyRecipe:
            return
        except AutoPEFTError:  # a size that is larger than the backbone is wide
            if size is None:
                return


def _at_rate(
    template: Template, index: int, size: int | None, recipe: Recipe, spec: BackboneSpec
) -> FittedRecipe:
    told = recipe.to_dict()
    training = {**told.get("training", {}), "learning_rate": template.rates.of(size)[index]}
    found = Recipe.from_dict({**told, "name": template.name, "training": training})
    key = build_graph(found, spec).trial_hash()
    return FittedRecipe(template.name, index, size, found, count(found, spec), key)

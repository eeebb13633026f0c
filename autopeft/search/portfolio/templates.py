"""Recipes with one free size, which a backbone and a budget fill.

A recipe that was good on six layers of 384 says nothing literal about twelve layers of 768: its ranks and
layer indices belong to one backbone. A template keeps what carries over (which methods, on which share of the
layers, at which rate for which size) and leaves the size to the budget.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        data = {
            "autopeft": 2,
            "name": "portfolio",
            "vars": {"size": {"choice": list(self.sizes)}},
            "layers": self.tree["layers"],
            "model": self.tree["model"],
            "training": {"groups": groups},
        }
        if not self.sizes:
            del data["vars"]
        return Space.from_yaml(json.dumps(data), f"{_FILE}: {self.name}")


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
    found = []
    for name, tree in read_yaml(
        files(__package__).joinpath(_FILE).read_text(encoding="utf-8"), _FILE
    ).items():
        rates = tree["rates"]
        recipe = {
            "layers": tree.get("layers", []),
            "model": tree.get("model", []),
            "groups": tree.get("groups", {}),
        }
        at = Rates(tuple(rates["at"]), rates.get("size", 1), rates.get("power", 0.0))
        found.append(Template(name, tuple(tree.get("sizes", ())), at, recipe))
    return tuple(found)


def fitted(template: Template, spec: BackboneSpec, budget: Budget) -> list[FittedRecipe]:
    """The template's recipes on a backbone, one for each rate, as large as the budget's upper limit allows;
    none where even the smallest is too large, or the backbone lacks a site that it needs."""
    most, bound = budget.limits(spec)[1], template.space.bind(spec)
    for size in reversed(template.sizes) if template.sizes else (None,):
        try:
            recipe = bound.materialize({} if size is None else {"size": size})
        except EmptyRecipe:
            return []
        except AutoPEFTError:  # a size that is larger than the backbone is wide
            continue
        if count(recipe, spec).deployed > most:
            continue
        members, data = [], recipe.to_dict()
        for index, rate in enumerate(template.rates.of(size)):
            training = {**data.get("training", {}), "learning_rate": rate}
            member = Recipe.from_dict({**data, "name": template.name, "training": training})
            key = build_graph(member, spec).trial_hash()
            members.append(FittedRecipe(template.name, index, size, member, count(member, spec), key))
        return members
    return []

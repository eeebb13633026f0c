"""Methods alone and two on one model: what comes of each.

A pair works, is refused or is broken (see `lib.trying`). A method alone is a pair without a second one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from lib.tiny_rows import TWO
from lib.trying import recipe_of, runs_for, tried
from tiny import MODELS

from autopeft.backbones import spec_of_model
from autopeft.errors import AutoPEFTError
from autopeft.graph import build_graph
from autopeft.hybrid import attach
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import acts_by_task
from autopeft.spec import BackboneSpec, Site
from autopeft.tasks.kinds import get_kind
from autopeft.training.checks import check_recipe

__all__ = [
    "Outcome",
    "Pair",
    "all_pairs",
    "alone",
    "class_of",
    "everything",
    "one_of_each_class",
    "outcome_of",
    "sampled",
]


@dataclass(frozen=True)
class Pair:
    """Two methods, which may be the same, or one (`second` is `None`), on a model of `tiny.MODELS`."""

    model: str
    first: str
    second: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def recipe(self) -> Recipe:
        """Its methods at their catalogue's defaults, as far as those fit."""
        return recipe_of(self.methods, TWO if MODELS[self.model].two_tasks else ())


@dataclass(frozen=True)
class Outcome:
    """What came of a pair: `works`, `refused` or `broken`, and why."""

    model: str
    first: str
    second: str | None
    outcome: str
    reason: str = ""

    @property
    def pair(self) -> Pair:
        return Pair(self.model, self.first, self.second)

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


# What is tried
# ---------------------------------------------------------------------------------------------------------


def everything() -> list[Pair]:
    """All that is recorded: each method alone on each model; every pair on some of them, on that of two tasks
    those of which one method acts by the task, and on the others one pair of each class."""
    some: list[Pair] = []
    for name, tiny in MODELS.items():
        pairs = all_pairs([name])
        if tiny.two_tasks:
            some += [pair for pair in pairs if any(map(acts_by_task, pair.methods))]
        elif not tiny.every_pair:
            some += one_of_each_class(pairs)
    return [*alone(), *some, *all_pairs([name for name, tiny in MODELS.items() if tiny.every_pair])]


def alone(models: Sequence[str] = tuple(MODELS)) -> list[Pair]:
    """Every registered method by itself."""
    return [Pair(model, name) for model in models for name in method_names()]


def all_pairs(models: Sequence[str]) -> list[Pair]:
    """Every pair of registered methods, each method with itself too."""
    names = method_names()
    return [Pair(m, *pair) for m in models for pair in itertools.combinations_with_replacement(names, 2)]


@cache
def class_of(pair: Pair) -> tuple[Any, ...]:
    """How the two act, and at what kinds of site they meet; `None` where the pair, or one of the two by
    itself, is refused."""
    ways = sorted("+".join(sorted(get_method(name).traits.ways)) for name in pair.methods)
    try:
        graph = build_graph(pair.recipe(), _spec(pair.model))
    except AutoPEFTError:
        return (pair.model, *ways, None)
    if not all(_fits(pair.model, name) for name in pair.methods):
        return (pair.model, *ways, None)
    sites = [set(entry.sites) for entry in graph.entries.values()]
    shared = sites[0] & sites[1] if len(sites) == 2 else set()
    return (pair.model, *ways, tuple(sorted({_kind(site) for site in shared})))


def _kind(site: Site) -> tuple[str, str, bool]:
    """Stack and kind of a site, and whether it belongs to cross-attention."""
    return site.stack, site.kind, site.name.startswith("cross_")


@cache
def _fits(model: str, method: str) -> bool:
    """Whether a method by itself is taken by the model and by its kind of task; policies act on others."""
    if get_method(method).traits.level == "training":
        return True
    tiny, recipe = MODELS[model], Pair(model, method).recipe()
    try:
        with attach(tiny.model(), recipe, seed=0, runs=runs_for(recipe, tiny.model)) as hybrid:
            check_recipe(hybrid, get_kind(tiny.kind))
    except AutoPEFTError:
        return False
    return True


@cache
def _spec(model: str) -> BackboneSpec:
    return spec_of_model(MODELS[model].model())[0]


def one_of_each_class(pairs: Sequence[Pair]) -> list[Pair]:
    """The first pair of each class (see `class_of`)."""
    found: dict[Any, Pair] = {}
    for pair in pairs:
        found.setdefault(class_of(pair), pair)
    return list(found.values())


def sampled(pairs: Sequence[Pair], share: float, seed: int = 0) -> list[Pair]:
    """A seeded share of the pairs."""
    return random.Random(seed).sample(list(pairs), max(1, round(share * len(pairs))))


# What comes of it
# ---------------------------------------------------------------------------------------------------------


def outcome_of(pair: Pair) -> Outcome:
    """Attach a pair, train it for a few steps and tell what came of it."""
    tiny = MODELS[pair.model]
    outcome, reason = tried(tiny.model, pair.recipe(), tiny.kind)
    return Outcome(**asdict(pair), outcome=outcome, reason=reason)

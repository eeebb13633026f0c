"""Members of a search space that serve as baselines: each method alone, the mid-point, random hybrids."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from autopeft.counting import Budget, Counts
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.recipe.models import entry_items
from autopeft.recipe.pooling import trained_entries
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.candidate import candidate
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.repair import Infeasible

__all__ = ["REFERENCE", "BaselineRecipe", "middle", "random_hybrids", "single_methods"]

REFERENCE = "lora"
"""The method that every search is compared with, at the largest size that fits."""

_MOVES = 48
_TRIES = 20
_START, _SPREAD = 0.75, 0.6


class BaselineRecipe(NamedTuple):
    """A recipe inside the budget; `title` says in words what it is, `hash` is equal for those of the space
    that train the same."""

    title: str
    recipe: Recipe
    counts: Counts
    hash: str = ""


def single_methods(bound: BoundSpace, budget: Budget, rates: int) -> list[BaselineRecipe]:
    """Each method that the space offers, alone and as large as the budget allows, at `rates` learning rates.

    They start from `starting_points`; a method that these hide behind a choice (DoRA beside LoRA) is found by
    changing up to two parameters. Where a method alone cannot reach a budget's lower limit it is taken below
    it, unless another reaches it. A space with no method but LoRA has none: that is the LoRA baseline.
    """
    largest = _largest(bound, budget)
    if set(largest) <= {REFERENCE}:
        return []
    least, most = budget.limits(bound.spec)
    open_below = replace(budget, lower=None)
    found: list[BaselineRecipe] = []
    for method, point in largest.items():
        for values in _at_rates(bound, point, rates):
            member = _repaired(bound, values, budget, method)
            if member is None or _methods_of(member.recipe) != {method}:
                # Growing into a range brings in other methods.
                member = _repaired(bound, values, open_below, method)
            if member is not None and _methods_of(member.recipe) == {method}:
                found.append(member)
    inside = [m for m in found if least <= m.counts.deployed <= most]
    return _distinct(inside or found)


def middle(bound: BoundSpace, budget: Budget, rates: int) -> list[BaselineRecipe]:
    """The mid-point of the space, everything on, at `rates` learning rates, repaired into the budget."""
    (point,) = starting_points(bound, 1)
    members = (_repaired(bound, v, budget, "mid-point of the space") for v in _at_rates(bound, point, rates))
    return _distinct([m for m in members if m is not None])


def random_hybrids(bound: BoundSpace, budget: Budget, count: int, seed: int) -> list[BaselineRecipe]:
    """At most `count` different members, drawn uniformly and repaired into the budget.

    What they train with is not drawn: learning rates are those that a search starts from, so that chance
    decides the structure alone.
    """
    rng = random.Random(f"random hybrids {seed}")
    (start,) = starting_points(bound, 1)
    rates = {p.name: start[p.name] for p in bound.parameters if _is_rate(p)}
    found: list[BaselineRecipe] = []
    for _ in range(_TRIES * count):
        if len(found) == count:
            break
        member = _repaired(bound, {**bound.sample(rng), **rates}, budget, f"random hybrid {len(found) + 1}")
        if member is not None:
            found = _distinct([*found, member])
    return found


def _is_rate(parameter: Parameter) -> bool:
    return parameter.kind == "float" and parameter.log


def _at_rates(bound: BoundSpace, point: Mapping[str, Any], rates: int) -> Iterator[dict[str, Any]]:
    """The point with learning rates (logarithmic numbers) spread around those that a search starts from,
    three quarters up in what the space allows."""
    for i in range(rates):
        share = _START + _SPREAD * ((i + 0.5) / rates - 0.5)
        moved = {p.name: p.low * (p.high / p.low) ** share for p in bound.parameters if _is_rate(p)}
        yield {**point, **moved}


def _repaired(
    bound: BoundSpace, values: Mapping[str, Any], budget: Budget, title: str
) -> BaselineRecipe | None:
    try:
        found = candidate(bound, values, budget)
    except (Infeasible, EmptyRecipe):
        return None
    return BaselineRecipe(title, found.recipe, found.counts, found.hash)


def _distinct(members: list[BaselineRecipe]) -> list[BaselineRecipe]:
    """The first of those that train the same."""
    kept: dict[str, BaselineRecipe] = {}
    for member in members:
        kept.setdefault(member.hash, member)
    return list(kept.values())


def _methods_of(recipe: Recipe) -> set[str]:
    return {entry.method for entry in trained_entries(recipe)}


def _largest(bound: BoundSpace, budget: Budget) -> dict[str, dict[str, Any]]:
    """For each method a point that has it alone: the largest that fits, else the smallest that was seen."""
    _, most = budget.limits(bound.spec)
    counter = bound.kept(PointCounter)
    best: dict[str, tuple[tuple[bool, int], dict[str, Any]]] = {}
    for point in starting_points(bound, len(bound.units) + 1):
        for values in _nearby(bound, point):
            methods = _methods(bound, values)
            if len(methods) != 1:
                continue
            deployed = counter.count(values).deployed
            rank = (True, deployed) if deployed <= most else (False, -deployed)
            (method,) = methods
            if method not in best or rank > best[method][0]:
                best[method] = (rank, values)
    return {method: values for method, (_, values) in best.items()}


def _methods(bound: BoundSpace, values: Mapping[str, Any]) -> set[str]:
    items = (bound.item(unit, values) for unit in bound.units)
    return {entry.method for _, entry in entry_items(tuple(i for i in items if i is not None))}


def _nearby(bound: BoundSpace, point: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The point, then those that differ in one or two parameters of what is there; only in one where these
    are many."""
    yield dict(point)
    there = [unit for unit in bound.units if bound.item(unit, point) is not None]
    names = dict.fromkeys(name for unit in there for name in unit.item_parameters)
    moves = [(name, v) for name in names for v in _values(bound.parameter(name)) if v != point[name]]
    for name, value in moves:
        yield {**point, name: value}
    if len(moves) <= _MOVES:
        for (first, a), (second, b) in itertools.combinations(moves, 2):
            if first != second:
                yield {**point, first: a, second: b}


def _values(parameter: Parameter) -> tuple[Any, ...]:
    """What to try of a parameter: all choices, the ends of a whole-number range, nothing of other numbers."""
    if parameter.kind == "categorical":
        return parameter.choices
    return (int(parameter.low), int(parameter.high)) if parameter.kind == "int" else ()

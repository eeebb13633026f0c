"""Repair: any point of a space becomes a recipe inside the budget, deterministically and before any training.

Too large: the size with the largest share of the parameters goes to its next smaller choice, again and
again; when all sizes are at their smallest, layers, optional items and whole methods are switched off,
the fewest that suffice. Too small, where the budget has a lower limit: the size with the smallest share
grows, then something is switched on. A point that fits is left as it is. The cost of each choice is
found by counting, so this works on any space.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopeft.counting import Budget, Counts
from autopeft.errors import BudgetError, RecipeError
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.search.space.bound import BoundSpace, Unit
from autopeft.search.space.counting import IMPOSSIBLE, PointCounter
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.templates import size_of

__all__ = ["Balance", "Infeasible", "Repaired", "check_feasible", "feasible_share", "repair", "smallest"]

_BRUTE_FORCE = 4096
_FLOAT_STEPS = 32
_DRAWN = 12  # random points from which a budget's lower limit is tried
# Parameters × their values × values in the recipe, summed over all items: some five seconds for a point.
# Built-in spaces have a hundredth of that at most.
_MOST_EFFORT = 500_000


class Infeasible(BudgetError):  # noqa: N818
    """No member of the space that repair can reach lies inside the budget."""


@dataclass(frozen=True)
class Repaired:
    """A point inside the budget: `values`, their `recipe` and `counts`, and whether repair `changed` it."""

    values: dict[str, Any]
    recipe: Recipe
    counts: Counts
    changed: bool


def repair(bound: BoundSpace, values: Mapping[str, Any], budget: Budget) -> Repaired:
    """Move `values` into the budget. The same input always gives the same output.

    Raises:
        Infeasible: no member of the space fits; the message says how small or large it can get.
        RecipeError: a value is missing, unknown or not allowed.
    """
    balance = bound.kept(Balance)
    bound.check(values)
    point = balance.moved_into(budget, values)
    recipe, counts = bound.materialize(point.values), balance.counter.count(point.values)
    if _misses(bound, budget, counts.deployed):
        raise _missed(bound, budget, counts.deployed)
    return Repaired(point.values, recipe, counts, changed=point.values != dict(values))


def _misses(bound: BoundSpace, budget: Budget, deployed: int) -> int:
    """By how many parameters a count lies outside the budget."""
    least, most = budget.limits(bound.spec)
    return max(0, least - deployed, deployed - most)


def _missed(bound: BoundSpace, budget: Budget, deployed: int) -> Infeasible:
    least, most = budget.limits(bound.spec)
    return Infeasible(
        f"Repair found no member of space {bound.name!r} with {least:,} to {most:,} parameters "
        f"(budget {budget}): it came to {deployed:,}. Widen the budget, or offer finer sizes."
    )


def smallest(bound: BoundSpace) -> Repaired:
    """The member of the space with the fewest deployed parameters that is not empty.

    Exact where the discrete part of the space has few members; else found by descent from every item in turn.

    Raises:
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    balance = bound.kept(Balance)
    values = dict(balance.smallest[0])
    return Repaired(values, bound.materialize(values), balance.counter.count(values), changed=False)


def check_feasible(bound: BoundSpace, budget: Budget) -> None:
    """Check that repair finds a member of the space inside the budget: that the smallest one fits, and where
    there is a lower limit, that it is reached from where a search starts or from one of a few random points.

    Raises:
        Infeasible: it finds none; the message says how small the space gets, or how near it came.
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    balance, rng = bound.kept(Balance), random.Random(0)
    balance.check_smallest(budget)
    values, nearest = balance.smallest
    drawn = (bound.sample(rng) for _ in range(_DRAWN))
    starts = itertools.chain([values], starting_points(bound, len(bound.units) + 1), drawn)
    while _misses(bound, budget, nearest):
        start = next(starts, None)
        if start is None:
            raise _missed(bound, budget, nearest)
        total = balance.moved_into(budget, start).total
        nearest = min(nearest, total, key=lambda count: _misses(bound, budget, count))


def feasible_share(bound: BoundSpace, budget: Budget, *, n: int = 1000, seed: int = 0) -> float:
    """Share of `n` random points that lie inside the budget without repair."""
    balance = bound.kept(Balance)
    least, most = budget.limits(bound.spec)
    rng = random.Random(seed)
    points = (balance.at(bound.sample(rng)) for _ in range(n))
    return sum(p.present and least <= p.total <= most for p in points) / n


@dataclass(frozen=True, slots=True)
class _Point:
    """Values of the space, the parameters of each unit there (`None` where it is absent), and the sum."""

    values: dict[str, Any]
    costs: tuple[int | None, ...]
    total: int

    @property
    def present(self) -> bool:
        """Whether anything is attached."""
        return any(cost is not None for cost in self.costs)


class Balance:
    """The cost of every unit of a space at given values, and moves along single parameters.

    `bound.kept(Balance)` is the one of a space.

    Raises:
        RecipeError: an item has so many choices of its own that fitting it to a budget would take long.
    """

    def __init__(self, bound: BoundSpace) -> None:
        self.bound = bound
        self.counter = bound.kept(PointCounter)
        self.touched: dict[str, list[Unit]] = {}
        for unit in bound.units:
            for name in dict.fromkeys((*unit.item_parameters, *unit.place_parameters)):
                self.touched.setdefault(name, []).append(unit)
        self.parameters = [p for p in bound.parameters if p.name in self.touched]
        self.sized = {name for unit in bound.units for name in unit.size_parameters}
        self.choices = {p.name: _values(p) for p in self.parameters}
        # A move of one size reads all of its item again, and all sizes of the item are tried again after each
        # move: a space whose repair would take long is refused.
        effort, most = 0, 0
        for unit in bound.units:
            names = dict.fromkeys(unit.item_parameters)
            choices = sum(len(self.choices[name]) for name in names)
            effort += len(names) * choices * size_of(unit.template.node)
            most = max(most, len(names))
        if effort > _MOST_EFFORT:
            raise RecipeError(
                f"Items of space {bound.name!r} have up to {most:,} choices of their own, and fitting "
                f"them to a budget would take {effort / _MOST_EFFORT:.1f} times as long as is allowed; let "
                "their methods share sizes by `vars:`, or split the items."
            )
        # Units that share a parameter with others: a change of one may change what else can be done.
        shared = (units for units in self.touched.values() if len(units) > 1)
        self._entangled = {unit.index for units in shared for unit in units}

    def moved_into(self, budget: Budget, values: Mapping[str, Any]) -> _Point:
        """The point that repair reaches: inside the budget, or as near as it gets to a lower limit.

        Raises:
            Infeasible: the smallest member is too large.
        """
        least, most = budget.limits(self.bound.spec)
        point = self.at(values)
        if not point.present:
            point = self.switched_on(point)
        # Too large: to `most`, or as far as single moves lead, and from there to the smallest member.
        while point.total > most:
            step = self._smaller_size(point) or self._switch_off(point, most)
            if step is None:
                self.check_smallest(budget)
                point = self.moved(point, self.structural(self.smallest[0]))
                break
            point = self.moved(point, step)
        # Too small: to `least` without passing `most`, as far as one or two moves at a time lead.
        while point.total < least:
            step = self._larger(point, most) or self._two_changes(point, least, most)
            if step is None:
                break
            point = self.moved(point, step)
        return point

    def check_smallest(self, budget: Budget) -> None:
        """Raise `Infeasible` where the smallest member is too large."""
        _, most = budget.limits(self.bound.spec)
        _, n = self.smallest
        if n > most:
            raise Infeasible(
                f"No member of space {self.bound.name!r} fits {budget} ({most:,} parameters here): "
                f"its smallest has {n:,}. Raise the budget, or offer smaller sizes."
            )

    def structural(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that decide what is attached; learning rates and the like are left out."""
        return {p.name: values[p.name] for p in self.parameters}

    def at(self, values: Mapping[str, Any]) -> _Point:
        """The point with these values."""
        costs = self.counter.costs(self.bound.units, values)
        return _Point(dict(values), tuple(costs), sum(c or 0 for c in costs))

    def moved(self, point: _Point, changes: Mapping[str, Any]) -> _Point:
        """The point after changes of some parameters."""
        values = {**point.values, **changes}
        costs = list(point.costs)
        units = {unit.index: unit for name in changes for unit in self.touched[name]}
        for unit, cost in zip(units.values(), self.counter.costs(units.values(), values), strict=True):
            costs[unit.index] = cost
        return _Point(values, tuple(costs), sum(c or 0 for c in costs))

    def alternatives(
        self, name: str, point: _Point, skip: Collection[Any] = ()
    ) -> Iterator[tuple[Any, list[int | None]]]:
        """Every other value of a parameter, with the cost of each of its units there."""
        now, units = point.values[name], self.touched[name]
        there = dict(point.values)
        for value in self.choices[name]:
            same = value == now and isinstance(value, bool) == isinstance(now, bool)
            if not same and value not in skip:
                there[name] = value
                yield value, self.counter.costs(units, there)

    def moves(self, name: str, point: _Point, skip: Collection[Any] = ()) -> Iterator[tuple[Any, int]]:
        """Every other value of a parameter with the total there, where something stays attached."""
        touched = {unit.index for unit in self.touched[name]}
        rest = point.total - sum([point.costs[i] or 0 for i in touched])
        others = any(cost is not None for i, cost in enumerate(point.costs) if i not in touched)
        for value, costs in self.alternatives(name, point, skip):
            if others or any(cost is not None for cost in costs):
                yield value, rest + sum([cost or 0 for cost in costs])

    def _smaller_size(self, point: _Point) -> dict[str, Any] | None:
        """The size with the largest share, at its next smaller choice: the one that lowers the total least
        and leaves the same units there."""
        best: tuple[int, dict[str, Any]] | None = None
        for p in self.parameters:
            if p.name not in self.sized:
                continue
            now = [point.costs[unit.index] for unit in self.touched[p.name]]
            present, share = [cost is not None for cost in now], sum([cost or 0 for cost in now])
            if best is not None and share <= best[0]:
                continue
            lower: tuple[int, Any] | None = None
            for value, costs in self.alternatives(p.name, point):
                reached = sum([cost or 0 for cost in costs])
                if (
                    reached < share
                    and (lower is None or reached > lower[0])
                    and [cost is not None for cost in costs] == present
                ):
                    lower = (reached, value)
            if lower is not None:
                best = (share, {p.name: lower[1]})
        return None if best is None else best[1]

    def _switch_off(self, point: _Point, most: int) -> dict[str, Any] | None:
        """The change with the largest total within `most`; if none reaches that, the one that lowers it most.

        The next changes are made with it where they are already certain. A space of a thousand parameters
        would otherwise try all of them a thousand times.
        """
        options = [
            (reached, name, value)
            for name in self.choices
            for value, reached in self.moves(name, point)
            if reached < point.total
        ]
        fitting = [o for o in options if o[0] <= most]
        if fitting:
            _, name, value = max(fitting, key=lambda o: o[0])
            return {name: value}
        there = {i for i, cost in enumerate(point.costs) if cost is not None}
        total, changes = point.total, dict[str, Any]()
        for reached, name, value in sorted(options, key=lambda o: o[0]):
            units = {unit.index for unit in self.touched[name]}
            if changes and (
                total + reached - point.total <= most or units & self._entangled or not there - units
            ):
                break
            if name not in changes:
                changes[name] = value
                total += reached - point.total
                there -= units
            if units & self._entangled:
                break
        return changes or None

    def _larger(self, point: _Point, most: int) -> dict[str, Any] | None:
        """The size in use with the smallest share at its next larger choice; else the cheapest addition."""
        best: tuple[tuple[bool, int, int], dict[str, Any]] | None = None
        for name in self.choices:
            share = sum([point.costs[unit.index] or 0 for unit in self.touched[name]])
            unused = name not in self.sized or share == 0
            if best is not None and (unused, share) > best[0][:2]:
                continue
            rising = [m for m in self.moves(name, point) if point.total < m[1] <= most]
            if rising:
                value, reached = min(rising, key=lambda m: m[1])
                rank = (unused, share, reached)
                if best is None or rank < best[0]:
                    best = (rank, {name: value})
        return None if best is None else best[1]

    def _two_changes(self, point: _Point, least: int, most: int) -> dict[str, Any] | None:
        """Two changes together that land nearest above `least`, still inside."""
        best: tuple[int, dict[str, Any]] | None = None
        firsts: dict[str, set[Any]] = {}
        for name in self.choices:
            values = [value for value, _ in self.moves(name, point)]
            for value in values:
                there = self.moved(point, {name: value})
                for other in self.choices:
                    # The pair was tried before if the other change was once the first.
                    ends = () if other == name else self.moves(other, there, firsts.get(other, ()))
                    for second, end in ends:
                        if least <= end <= most and (best is None or end < best[0]):
                            best = (end, {name: value, other: second})
            firsts[name] = set(values)
        return None if best is None else best[1]

    def switched_on(self, point: _Point) -> _Point:
        """Switch on the cheapest single thing in an empty point; failing that, take the smallest member."""
        start, _ = self.smallest
        options = [
            there
            for name in self.choices
            for value in self.choices[name]
            if (there := self.moved(point, {name: value})).present
        ]
        if options:
            return min(options, key=lambda there: there.total)
        return self.moved(point, self.structural(start))

    @cached_property
    def smallest(self) -> tuple[dict[str, Any], int]:
        """Values of the smallest member, and its count.

        Raises:
            EmptyRecipe: this backbone can take nothing that the space offers.
        """
        usual = {p.name: p.middle for p in self.bound.parameters}
        if math.prod(map(len, self.choices.values())) <= _BRUTE_FORCE:
            combinations = itertools.product(*self.choices.values())
            points = [self.at({**usual, **dict(zip(self.choices, c, strict=True))}) for c in combinations]
        else:
            found = (self._least_with(unit, usual) for unit in self.bound.units)
            points = [point for point in found if point is not None]
        smallest = min((p for p in points if p.present), key=lambda p: p.total, default=None)
        if smallest is None:
            reasons = "".join(f" {reason}" for reason in self.bound.left_out.values())
            raise EmptyRecipe(
                f"Space {self.bound.name!r} offers nothing that this backbone can take.{reasons}"
            )
        if smallest.total >= IMPOSSIBLE:
            self.counter.count(smallest.values)  # raises the reason
        return smallest.values, smallest.total

    def _least_with(self, unit: Unit, usual: Mapping[str, Any]) -> _Point | None:
        """Descent one parameter at a time from a point that holds `unit`, which stays attached throughout."""
        values = dict(usual)
        for name, choices in self.choices.items():
            costs = [self.counter.costs((unit,), {**values, name: value})[0] for value in choices]
            sizes = [-1 if cost is None else cost for cost in costs]
            values[name] = choices[sizes.index(max(sizes))]
        if self.counter.costs((unit,), values)[0] is None:
            return None
        point = self.at(values)
        changed = True
        while changed:
            changed = False
            for name in self.choices:
                for value, reached in list(self.moves(name, point)):
                    there = {**point.values, name: value}
                    if reached < point.total and self.counter.costs((unit,), there)[0] is not None:
                        point, changed = self.moved(point, {name: value}), True
        return point


def _values(p: Parameter) -> list[Any]:
    """The values of a parameter; of a wide range a fixed selection, ends included."""
    if p.kind == "categorical":
        return list(p.choices)
    low, high = p.low, p.high
    if p.kind == "int" and high - low < 2 * _FLOAT_STEPS:
        return list(range(int(low), int(high) + 1))
    steps = [i / _FLOAT_STEPS for i in range(_FLOAT_STEPS + 1)]
    raw = [low * (high / low) ** s if low > 0 else low + (high - low) * s**2 for s in steps]
    if p.kind == "float":
        return [min(max(v, low), high) for v in raw]
    return sorted({min(max(round(v), int(low)), int(high)) for v in raw})

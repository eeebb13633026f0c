"""Repair: any point of a space becomes a recipe inside the budget, deterministically and before any training.

Too large: the size with the largest share of the parameters goes to its next smaller choice, again and
again; when all sizes are at their smallest, layers, optional items and whole methods are switched off,
the least that suffices. Too small, where the budget has a lower limit: the size with the smallest share
grows, then something is switched on. A point that fits is left as it is. What a parameter costs is
found by counting, so this works on any space.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from autopeft.counting import Budget, Counts, count
from autopeft.errors import BudgetError
from autopeft.recipe import EmptyRecipe, Recipe
from autopeft.search.space import Space
from autopeft.search.space_bound import BoundSpace, Parameter, Unit
from autopeft.spec import BackboneSpec

__all__ = ["Infeasible", "Repaired", "check_feasible", "feasible_share", "repair", "smallest"]

_BRUTE_FORCE = 4096
_FLOAT_STEPS = 32


class Infeasible(BudgetError):  # noqa: N818
    """No member of the space that repair can reach lies inside the budget."""


@dataclass(frozen=True)
class Repaired:
    """A point inside the budget: `values`, their `recipe` and `counts`, and whether repair `changed` it."""

    values: dict[str, Any]
    recipe: Recipe
    counts: Counts
    changed: bool


def repair(
    space: Space | BoundSpace, values: Mapping[str, Any], budget: Budget, spec: BackboneSpec | None = None
) -> Repaired:
    """Move `values` into the budget. The same input always gives the same output.

    Raises:
        Infeasible: no member of the space fits; the message says how small or large it can get.
        RecipeError: a value is missing, unknown or not allowed.
    """
    ledger = _ledger(space, spec)
    ledger.bound.check(values)
    least, most = budget.limits(ledger.bound.spec)
    point = dict(values)
    if not ledger.present(point):
        ledger.revive(point)
    if ledger.total(point) > most:
        ledger.shrink(point, most)
    if ledger.total(point) > most:
        _check_smallest(ledger, budget)
        start, _ = ledger.smallest
        point.update(ledger.structural(start))
    if ledger.total(point) < least:
        ledger.grow(point, least, most)
    recipe = ledger.bound.materialize(point)
    counts = count(recipe, ledger.bound.spec)
    if not least <= counts.deployed <= most:
        raise Infeasible(
            f"Repair found no member of space {ledger.bound.name!r} with {least:,} to {most:,} parameters "
            f"(budget {budget}): it came to {counts.deployed:,}. Widen the budget, or offer finer sizes."
        )
    return Repaired(point, recipe, counts, changed=point != dict(values))


def smallest(space: Space | BoundSpace, spec: BackboneSpec | None = None) -> Repaired:
    """The member of the space with the fewest deployed parameters that is not empty.

    Exact where the discrete part of the space has few members; else found by descent from every item in turn.

    Raises:
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    ledger = _ledger(space, spec)
    values = dict(ledger.smallest[0])
    recipe = ledger.bound.materialize(values)
    return Repaired(values, recipe, count(recipe, ledger.bound.spec), changed=False)


def check_feasible(space: Space | BoundSpace, budget: Budget, spec: BackboneSpec | None = None) -> None:
    """Check that the smallest member of the space fits the budget.

    Raises:
        Infeasible: it does not; the message says how small the space gets.
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    _check_smallest(_ledger(space, spec), budget)


def _check_smallest(ledger: _Ledger, budget: Budget) -> None:
    _, most = budget.limits(ledger.bound.spec)
    _, n = ledger.smallest
    if n > most:
        raise Infeasible(
            f"No member of space {ledger.bound.name!r} fits {budget} ({most:,} parameters here): "
            f"its smallest has {n:,}. Raise the budget, or offer smaller sizes."
        )


def feasible_share(
    space: Space | BoundSpace,
    budget: Budget,
    spec: BackboneSpec | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
) -> float:
    """Share of `n` random points that lie inside the budget without repair."""
    ledger = _ledger(space, spec)
    least, most = budget.limits(ledger.bound.spec)
    rng = random.Random(seed)
    points = (ledger.bound.sample(rng) for _ in range(n))
    return sum(ledger.present(p) and least <= ledger.total(p) <= most for p in points) / n


class _Ledger:
    """What every unit of a space costs at given values, remembered, and moves along single parameters."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound = bound
        self._costs: dict[Any, int | None] = {}
        self._by_recipe: dict[str, int] = {}
        self._keys = [tuple(dict.fromkeys((*u.item_parameters, *u.place_parameters))) for u in bound.units]
        self.touched: dict[str, list[Unit]] = {}
        for unit, names in zip(bound.units, self._keys, strict=True):
            for name in names:
                self.touched.setdefault(name, []).append(unit)
        self.parameters = [p for p in bound.parameters if p.name in self.touched]
        self.sized = {name for unit in bound.units for name in unit.size_parameters}
        self._smallest: tuple[dict[str, Any], int] | None = None

    def structural(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The values that decide what is attached; learning rates and the like are left out."""
        return {p.name: point[p.name] for p in self.parameters}

    def cost(self, unit: Unit, point: Mapping[str, Any]) -> int | None:
        """Deployed parameters of a unit, `None` where it is absent."""
        key = (unit.index, *(point[name] for name in self._keys[unit.index]))
        if key not in self._costs:
            self._costs[key] = self._count(unit, point)
        return self._costs[key]

    def _count(self, unit: Unit, point: Mapping[str, Any]) -> int | None:
        blocks = self.bound.place(unit, point)
        item = self.bound.item(unit, point)
        if blocks is None or item is None:
            return None
        recipe = Recipe(layers=blocks, model=() if blocks else (item,))
        key = repr((blocks, item))
        if key not in self._by_recipe:
            self._by_recipe[key] = count(recipe, self.bound.spec).deployed
        return self._by_recipe[key]

    def total(self, point: Mapping[str, Any]) -> int:
        return sum(self.cost(unit, point) or 0 for unit in self.bound.units)

    def present(self, point: Mapping[str, Any]) -> bool:
        """Whether anything is attached."""
        return any(self.cost(unit, point) is not None for unit in self.bound.units)

    def share(self, name: str, point: Mapping[str, Any]) -> int:
        """Parameters of the units that a parameter takes part in."""
        return sum(self.cost(unit, point) or 0 for unit in self.touched[name])

    def moves(self, p: Parameter, point: Mapping[str, Any], total: int) -> Iterator[tuple[Any, int]]:
        """Every other value of a parameter with the total it would give, where something stays attached."""
        rest = total - self.share(p.name, point)
        for value in _values(p):
            if value != point[p.name] or isinstance(value, bool) != isinstance(point[p.name], bool):
                there = {**point, p.name: value}
                costs = [self.cost(unit, there) for unit in self.touched[p.name]]
                if any(c is not None for c in costs) or self._others(p.name, point):
                    yield value, rest + sum(c or 0 for c in costs)

    def _others(self, name: str, point: Mapping[str, Any]) -> bool:
        touched = {unit.index for unit in self.touched[name]}
        return any(u.index not in touched and self.cost(u, point) is not None for u in self.bound.units)

    def shrink(self, point: dict[str, Any], most: int) -> None:
        """Lower the total to `most` or as far as single moves lead."""
        total = self.total(point)
        while total > most:
            step = self._smaller_size(point, total) or self._switch_off(point, total, most)
            if step is None:
                return
            name, value, total = step
            point[name] = value

    def _smaller_size(self, point: dict[str, Any], total: int) -> tuple[str, Any, int] | None:
        """The size with the largest share, at its next smaller choice that is not zero."""
        best: tuple[int, str, Any, int] | None = None
        for p in self.parameters:
            if p.name not in self.sized:
                continue
            share = self.share(p.name, point)
            if best is not None and share <= best[0]:
                continue
            present = [self.cost(u, point) is not None for u in self.touched[p.name]]
            for value, reached in _falling(self.moves(p, point, total), total):
                there = {**point, p.name: value}
                if [self.cost(u, there) is not None for u in self.touched[p.name]] == present:
                    best = (share, p.name, value, reached)
                    break
        return None if best is None else best[1:]

    def _switch_off(self, point: dict[str, Any], total: int, most: int) -> tuple[str, Any, int] | None:
        """The change that leaves the most within `most`; if none gets there, the one that takes off most."""
        options = [
            (name, value, reached)
            for p in self.parameters
            for name, (value, reached) in ((p.name, m) for m in self.moves(p, point, total))
            if reached < total
        ]
        fitting = [o for o in options if o[2] <= most]
        if fitting:
            return max(fitting, key=lambda o: o[2])
        return min(options, key=lambda o: o[2], default=None)

    def grow(self, point: dict[str, Any], least: int, most: int) -> None:
        """Raise the total to `least` without passing `most`, as far as one or two moves at a time lead."""
        total = self.total(point)
        while total < least:
            step = self._larger(point, total, most) or self._exchange(point, total, least, most)
            if step is None:
                return
            point.update(step[0])
            total = step[1]

    def _larger(self, point: dict[str, Any], total: int, most: int) -> tuple[dict[str, Any], int] | None:
        """The size in use with the smallest share at its next larger choice; else the cheapest addition."""
        best: tuple[tuple[bool, int, int], str, Any, int] | None = None
        for p in self.parameters:
            share = self.share(p.name, point)
            rising = sorted(
                (
                    (value, reached)
                    for value, reached in self.moves(p, point, total)
                    if total < reached <= most
                ),
                key=lambda m: m[1],
            )
            if rising:
                value, reached = rising[0]
                rank = (p.name not in self.sized or share == 0, share, reached)
                if best is None or rank < best[0]:
                    best = (rank, p.name, value, reached)
        return None if best is None else ({best[1]: best[2]}, best[3])

    def _exchange(
        self, point: dict[str, Any], total: int, least: int, most: int
    ) -> tuple[dict[str, Any], int] | None:
        """Two changes together that land nearest above `least`, still inside."""
        best: tuple[int, dict[str, Any]] | None = None
        for p in self.parameters:
            for value, reached in self.moves(p, point, total):
                there = {**point, p.name: value}
                for q in self.parameters:
                    if q.name == p.name:
                        continue
                    for other, end in self.moves(q, there, reached):
                        if least <= end <= most and (best is None or end < best[0]):
                            best = (end, {p.name: value, q.name: other})
        return None if best is None else (best[1], best[0])

    def revive(self, point: dict[str, Any]) -> None:
        """Switch on the cheapest single thing in an empty point; failing that, take the smallest member."""
        start, _ = self.smallest
        options = []
        for p in self.parameters:
            for value in _values(p):
                there = {**point, p.name: value}
                if self.present(there):
                    options.append((self.total(there), p.name, value))
        if options:
            best = min(options, key=lambda o: o[0])
            point[best[1]] = best[2]
        else:
            point.update(self.structural(start))

    @property
    def smallest(self) -> tuple[dict[str, Any], int]:
        """Values of the smallest member, and its count."""
        if self._smallest is None:
            self._smallest = self._find_smallest()
        return self._smallest

    def _find_smallest(self) -> tuple[dict[str, Any], int]:
        usual = {p.name: p.middle for p in self.bound.parameters}
        lists = [list(_values(p)) for p in self.parameters]
        size = 1
        for values in lists:
            size *= len(values)
        names = [p.name for p in self.parameters]
        if size <= _BRUTE_FORCE:
            points = ({**usual, **dict(zip(names, c, strict=True))} for c in itertools.product(*lists))
        else:
            points = (p for unit in self.bound.units if (p := self._least_with(unit, usual)) is not None)
        found = [(self.total(p), p) for p in points if self.present(p)]
        if not found:
            reasons = "".join(f" {reason}" for reason in self.bound.left_out.values())
            raise EmptyRecipe(
                f"Space {self.bound.name!r} offers nothing that this backbone can take.{reasons}"
            )
        n, point = min(found, key=lambda f: f[0])
        return point, n

    def _least_with(self, unit: Unit, usual: Mapping[str, Any]) -> dict[str, Any] | None:
        """Descent one parameter at a time from a point that holds `unit`, which stays attached throughout."""
        point = dict(usual)
        for p in self.parameters:
            point[p.name] = max(_values(p), key=lambda v, p=p: self._size_with({**point, p.name: v}, unit))  # type: ignore[misc]
        if self.cost(unit, point) is None:
            return None
        total = self.total(point)
        changed = True
        while changed:
            changed = False
            for p in self.parameters:
                for value, reached in self.moves(p, point, total):
                    if reached < total and self.cost(unit, {**point, p.name: value}) is not None:
                        point[p.name], total, changed = value, reached, True
        return point

    def _size_with(self, point: dict[str, Any], unit: Unit) -> int:
        cost = self.cost(unit, point)
        return -1 if cost is None else cost


def _falling(moves: Iterator[tuple[Any, int]], total: int) -> list[tuple[Any, int]]:
    """Moves that lower the total, the smallest step first."""
    return sorted((m for m in moves if m[1] < total), key=lambda m: -m[1])


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


_LEDGERS: WeakKeyDictionary[BoundSpace, _Ledger] = WeakKeyDictionary()


def _ledger(space: Space | BoundSpace, spec: BackboneSpec | None) -> _Ledger:
    if isinstance(space, Space):
        if spec is None:
            raise BudgetError(
                "A space without a backbone has no counts; give repair the spec, or a bound space."
            )
        space = space.bind(spec)
    ledger = _LEDGERS.get(space)
    if ledger is None:
        ledger = _LEDGERS[space] = _Ledger(space)
    return ledger

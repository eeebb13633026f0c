"""A space as one super-hybrid: its units at their largest, each of which can be cut or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.counting import Budget
from autopeft.errors import UsageError
from autopeft.quantity import parse_quantity
from autopeft.recipe import EntryItem
from autopeft.search.space.bound import BoundSpace, Unit
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.repair import repair

__all__ = [
    "Elastic",
    "Group",
    "SuperHybrid",
    "grouped",
    "largest_within",
    "origin_of",
    "places_of",
    "super_hybrid",
]


@dataclass(frozen=True)
class Elastic:
    """A unit of a space by size.

    Attributes:
        unit: where and what it is.
        parameter: the one that makes it larger, or leaves it out.
        sizes: its values from absent to the largest, each with the unit's deployed parameters.
    """

    unit: Unit
    parameter: str
    sizes: tuple[tuple[Any, int], ...]

    @property
    def whole(self) -> int:
        """Deployed parameters of the largest."""
        return self.sizes[-1][1]


@dataclass(frozen=True)
class SuperHybrid:
    """All that a search may keep, at once.

    Attributes:
        values: the point of the space.
        units: those that can be cut, in the space's order.
        fixed: deployed parameters of all else.
    """

    values: Mapping[str, Any]
    units: tuple[Elastic, ...]
    fixed: int

    @property
    def deployed(self) -> int:
        return self.fixed + sum(unit.whole for unit in self.units)

    def size(self, levels: Sequence[int]) -> int:
        """Deployed parameters where each unit has the size of this number."""
        return self.fixed + sum(u.sizes[level][1] for u, level in zip(self.units, levels, strict=True))

    def at(self, levels: Sequence[int]) -> dict[str, Any]:
        """The point at which each unit has the size of this number; 0 is absent."""
        sizes = (unit.sizes[level][0] for unit, level in zip(self.units, levels, strict=True))
        return {**self.values, **dict(zip((unit.parameter for unit in self.units), sizes, strict=True))}


@dataclass(frozen=True)
class Group:
    """Units of a super-hybrid that are judged together.

    Attributes:
        what: the name of their item.
        where: their layers.
        members: the units' numbers.
    """

    what: str
    where: str
    members: tuple[int, ...]


def super_hybrid(space: BoundSpace, most: int | None) -> SuperHybrid:
    """The largest hybrid of a space with at most `most` deployed parameters (`None`: of any size); where each
    unit at its smallest takes more together, they are at their smallest.

    Learning rates and all that is no size are those with which a search starts.

    Raises:
        UsageError: the space leaves none of its units out, or two units share a size.
    """
    counter, base = space.kept(PointCounter), dict(starting_points(space, 1)[0])
    found: list[Elastic] = []
    for unit in space.units:
        for name in unit.item_parameters:
            choices = space.parameter(name).choices
            costs = [(choice, counter.costs([unit], {**base, name: choice})[0]) for choice in choices]
            sizes = sorted(((c, 0 if n is None else n) for c, n in costs), key=lambda size: size[1])
            if sum(n is None for _, n in costs) == 1 and len(sizes) > 1:
                found.append(Elastic(unit, name, tuple(sizes)))
                break
    names = [unit.parameter for unit in found]
    if not found or len(set(names)) < len(names):
        raise UsageError(
            f"Space {space.name!r} has no units whose sizes can be chosen apart: an item of it has to have a "
            "size with a 0 among its choices, or to be optional, and a choice of its own (`each_layer`). "
            "`autopeft spaces gates` shows such a space."
        )

    def of(values: Mapping[str, Any]) -> SuperHybrid:
        costs = counter.costs([unit.unit for unit in found], values)
        kept = [
            Elastic(unit.unit, unit.parameter, tuple(s for s in unit.sizes if s[1] <= cost))
            for unit, cost in zip(found, costs, strict=True)
            if cost
        ]
        fixed = counter.count(values).deployed - sum(unit.whole for unit in kept)
        return SuperHybrid(values, tuple(kept), fixed)

    whole = {**base, **{unit.parameter: unit.sizes[-1][0] for unit in found}}
    if most is None:
        return of(whole)
    smallest = of({**base, **{unit.parameter: unit.sizes[1][0] for unit in found}})
    if smallest.deployed >= most:
        return smallest
    return of(repair(space, whole, Budget(parse_quantity(most))).values)


def places_of(
    space: BoundSpace, hybrid: SuperHybrid, values: Mapping[str, Any]
) -> dict[str, tuple[int, int]]:
    """What each entry at a point is, by its name: its unit's place in the space, and which entry of the unit;
    without those that cannot be left out."""
    own, seen = {unit.unit.index for unit in hybrid.units}, Counter[int]()
    found: dict[str, tuple[int, int]] = {}
    units = space.units_of_entries(values)
    # Where the head reads the mean there is an entry for that, which comes last.
    for entry, unit in zip(space.materialize(values).entries(), units, strict=False):
        if unit.index in own:
            found[entry.name] = unit.index, seen[unit.index]
            seen[unit.index] += 1
    return found


def origin_of(large: Mapping[str, tuple[int, int]], small: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """For each entry of one point the name that it has at another, from their `places_of`."""
    name_of = {place: name for name, place in large.items()}
    return {name: name_of[place] for name, place in small.items() if place in name_of}


def grouped(space: BoundSpace, hybrid: SuperHybrid, *, parts: int | None) -> list[Group]:
    """The units in groups of one item of the space and one part of the layers.

    Args:
        parts: of the layers; `None` for each layer by itself.
    """
    depth = max(stack.layers for stack in space.spec.stacks)
    parts = min(parts or depth, depth)
    found: dict[tuple[int, int], list[int]] = {}
    for number, unit in enumerate(hybrid.units):
        layer = unit.unit.layer
        part = -1 if layer is None else layer * parts // depth
        found.setdefault((id(unit.unit.template), part), []).append(number)
    groups = []
    for members in found.values():
        item = space.item(hybrid.units[members[0]].unit, hybrid.values)
        layers = [layer for i in members if (layer := hybrid.units[i].unit.layer) is not None]
        what = item.method if isinstance(item, EntryItem) else item.kind if item is not None else ""
        if item is not None and item.alias is not None:
            what = item.alias.removesuffix(f"_{layers[0]}" if layers else "")
        where = "everywhere" if not layers else f"{layers[0]}–{layers[-1]}"
        groups.append(Group(what, str(layers[0]) if len(layers) == 1 else where, tuple(members)))
    return groups


def largest_within(
    units: Sequence[Elastic], groups: Sequence[Group], order: Sequence[int], budget: int
) -> list[int]:
    """The size of each unit, as its number, with which all fit a budget: group after group gets all that it
    can have; where not all of it fits, its units grow in turn."""
    levels, left = [0] * len(units), budget
    for group in order:
        members = groups[group].members
        for level in range(1, max(len(units[i].sizes) for i in members)):
            for i in members:
                if levels[i] != level - 1 or level >= len(units[i].sizes):
                    continue
                more = units[i].sizes[level][1] - units[i].sizes[level - 1][1]
                if more <= left:
                    levels[i], left = level, left - more
    return levels

"""Where a search starts: the middle of its space, and each method alone, as large as the budget allows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.search.space.bound import BoundSpace, Unit

__all__ = ["starting_points"]

# Short trainings want learning rates in the upper half of what a space allows.
_RATE_QUANTILE = 0.75


def starting_points(space: BoundSpace, count: int) -> list[dict[str, Any]]:
    """At most `count` points, to be repaired into the budget: all methods together, then one at a time.

    Every layer is on; sizes are in the middle of their range, learning rates (logarithmic numbers) three
    quarters up; of unordered choices the first is taken. In the default space the second point is LoRA at the
    budget, the third and fourth are a serial and a parallel adapter.
    """
    base = _all_layers(space)
    switches = [_switch(space, units, base) for units in _by_template(space.units)]
    alone = []
    for i, switch in enumerate(switches):
        if switch is not None:
            point = dict(base)
            for j, other in enumerate(switches):
                if other is not None:
                    point.update(other.largest if i == j else other.absent)
            alone.append(point)
    return [base, *alone][:count]


class _Switch:
    """How to leave a method out, and how to have as much of it as there is."""

    def __init__(self, absent: dict[str, Any], largest: dict[str, Any]) -> None:
        self.absent, self.largest = absent, largest


def _all_layers(space: BoundSpace) -> dict[str, Any]:
    base = space.middle()
    for p in space.parameters:
        if p.kind == "float" and p.log:
            base[p.name] = p.low * (p.high / p.low) ** _RATE_QUANTILE
        elif not p.ordered:
            base[p.name] = True if True in p.choices else p.choices[0]
    for name in {name for unit in space.units for name in unit.place_parameters}:
        parameter = space.parameter(name)
        if parameter.kind == "int":
            base[name] = int(parameter.low)
    return base


def _by_template(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units that are one item of the space file, in file order."""
    groups: dict[int, list[Unit]] = {}
    for unit in units:
        groups.setdefault(id(unit.template), []).append(unit)
    return list(groups.values())


def _switch(space: BoundSpace, units: list[Unit], base: dict[str, Any]) -> _Switch | None:
    absent: dict[str, Any] = {}
    largest: dict[str, Any] = {}
    for unit in units:
        for name in unit.item_parameters:
            parameter = space.parameter(name)
            gone = [c for c in parameter.choices if space.item(unit, {**base, name: c}) is None]
            if gone and len(gone) < len(parameter.choices):
                there = [c for c in parameter.choices if c not in gone]
                absent[name], largest[name] = gone[0], there[-1]
                if parameter.sizes:
                    size = dict(zip(parameter.choices, parameter.sizes, strict=True))
                    largest[name] = max(there, key=lambda c: size[c])
                break
    return _Switch(absent, largest) if absent else None

"""Where a search starts: the middle of its space, and each method alone, as large as the budget allows, on
all layers or on the upper ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from autopeft.recipe import resolve_layers

if TYPE_CHECKING:
    from autopeft.search.space.bound import BoundSpace, Unit
    from autopeft.search.space.parameters import Parameter

__all__ = ["starting_points", "upper_points"]

# Short trainings want learning rates in the upper half of what a space allows.
_RATE_QUANTILE = 0.75
# Of the layers: a step that leaves the others alone takes about as much less.
_SHARES = (2, 4)


def starting_points(space: BoundSpace, count: int) -> list[dict[str, Any]]:
    """At most `count` points, to be repaired into the budget: all methods together, then one at a time.

    Every layer is on; sizes are in the middle of their range, learning rates (logarithmic numbers) three
    quarters up; of unordered choices the first is taken. In the default space the second point is LoRA at the
    budget, the third and fourth are a serial and a parallel adapter.
    """
    base = _all_layers(space)
    return [base, *(point for _, point in _alone(space, base))][:count]


def upper_points(space: BoundSpace, count: int) -> list[dict[str, Any]]:
    """At most `count` points, to be repaired into the budget, whose training steps are short: each method
    alone, as in `starting_points`, on the last half and on the last quarter of the layers.

    Those of earlier methods and of more layers come first. There are none where a space leaves no choice of
    layers, or no method out.
    """
    layers = min(stack.layers for stack in space.spec.stacks)
    found: list[tuple[int, int, dict[str, Any]]] = []
    for i, (units, point) in enumerate(_alone(space, _all_layers(space))):
        for j, many in enumerate(dict.fromkeys(layers // share for share in _SHARES if layers // share)):
            raised = _raised(space, units, point, layers - many)
            if raised is not None:
                found.append((i + j, j, raised))
    return [point for _, _, point in sorted(found, key=lambda f: f[:2])][:count]


def _alone(space: BoundSpace, base: Mapping[str, Any]) -> Iterator[tuple[list[Unit], dict[str, Any]]]:
    """Each method that can be left out, as its units, with the point that has it alone."""
    templates = _by_template(space.units)
    switches = [_switch(space, units, dict(base)) for units in templates]
    for i, switch in enumerate(switches):
        if switch is not None:
            point = dict(base)
            for j, other in enumerate(switches):
                if other is not None:
                    point.update(other.largest if i == j else other.absent)
            yield templates[i], point


def _raised(space: BoundSpace, units: list[Unit], point: dict[str, Any], first: int) -> dict[str, Any] | None:
    """The point with these units on as many layers as there are from `first` on, and on none below it; `None`
    where they cannot be moved so far."""
    there = [unit for unit in space.units if space.item(unit, point) is not None]
    if not units or units[0].block is None or any(unit.block is None for unit in there):
        return None
    names = dict.fromkeys(name for unit in there for name in unit.place_parameters)

    def place(values: Mapping[str, Any]) -> tuple[int, int]:
        covered = [i for unit in there for i in _layers(space, unit, values)]
        return sum(i < first for i in covered), -sum(i >= first for i in covered)

    for name in names:
        options = ({**point, name: value} for value in _values(space.parameter(name)))
        point = min([point, *options], key=place)
    below, above = place(point)
    return point if not below and above else None


def _layers(space: BoundSpace, unit: Unit, values: Mapping[str, Any]) -> list[int]:
    """The layers that a unit lies in; those of two stacks are listed twice."""
    depths: dict[str, int] = {stack.name: stack.layers for stack in space.spec.stacks}
    found: list[int] = []
    for at, stack in space.where(unit, values) or ():
        for name in depths if stack == "all" else (stack,):
            found += resolve_layers(at, depths[name])
    return found


def _values(parameter: Parameter) -> Iterable[Any]:
    if parameter.kind == "categorical":
        return parameter.choices
    return range(int(parameter.low), int(parameter.high) + 1) if parameter.kind == "int" else ()


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

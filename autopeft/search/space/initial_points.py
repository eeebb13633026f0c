"""Where a search starts: the middle of its space, and each method alone, as large as the budget allows, on
all layers or on the upper ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.recipe import resolve_layers
from autopeft.search.space.bound import BoundSpace, Unit

__all__ = ["start_point", "starting_points", "upper_points"]

# Short trainings need learning rates in the upper half of a space's range.
_RATE_QUANTILE = 0.75
# One in so many layers: the time of a step falls about with the layers that it alters.
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


def start_point(space: BoundSpace, name: str) -> dict[str, Any]:
    """The point that has all that starts from an input, and what else cannot be left out, else as in
    `starting_points`."""
    point: dict[str, Any] = {}
    for units, alone in _alone(space, _all_layers(space)):
        there = tuple(item for unit in units if (item := space.item(unit, alone)) is not None)
        if name in space.inputs_of(there):
            own = {key: alone[key] for unit in units for key in unit.item_parameters}
            point = {**(point or alone), **own}
    return point


def _alone(space: BoundSpace, base: Mapping[str, Any]) -> Iterator[tuple[list[Unit], dict[str, Any]]]:
    """Each method that can be left out, as its units, with the point that has it alone."""
    templates: dict[int, list[Unit]] = {}
    for unit in space.units:
        templates.setdefault(id(unit.template), []).append(unit)
    # For each the values that leave it out, and those that have as much of it as there is.
    switches: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for units in templates.values():
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
        switches.append((absent, largest))
    for i, units in enumerate(templates.values()):
        if switches[i][0]:
            point = dict(base)
            for j, (absent, largest) in enumerate(switches):
                point.update(largest if i == j else absent)
            yield units, point


def _raised(space: BoundSpace, units: list[Unit], point: dict[str, Any], first: int) -> dict[str, Any] | None:
    """The point with these units on as many layers as there are from `first` on, and on none below it; `None`
    where they cannot be moved so far."""
    there = [unit for unit in space.units if space.item(unit, point) is not None]
    if not units or units[0].block is None or any(unit.block is None for unit in there):
        return None
    depths: dict[str, int] = {stack.name: stack.layers for stack in space.spec.stacks}

    def place(values: Mapping[str, Any]) -> tuple[int, int]:
        covered: list[int] = []  # layers of two stacks are listed twice
        for unit in there:
            for at, stack in space.where(unit, values) or ():
                for name in depths if stack == "all" else (stack,):
                    covered += resolve_layers(at, depths[name])
        return sum(i < first for i in covered), -sum(i >= first for i in covered)

    for name in dict.fromkeys(name for unit in there for name in unit.place_parameters):
        parameter = space.parameter(name)
        whole = range(int(parameter.low), int(parameter.high) + 1) if parameter.kind == "int" else ()
        values = parameter.choices if parameter.kind == "categorical" else whole
        point = min([point, *({**point, name: value} for value in values)], key=place)
    below, above = place(point)
    return point if not below and above else None


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

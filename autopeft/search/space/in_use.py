"""Which parameters of a space had a part in a recipe: the rank of a method that is absent had none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autopeft.composition import is_composition
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.search.space.bound import BoundSpace, Unit, drop_groups, drop_head_parts
from autopeft.search.space.templates import (
    ABSENT,
    Context,
    Listed,
    Mapped,
    Node,
    Optional,
    Ref,
    is_zero,
    prune,
    size_field,
)

__all__ = ["parameters_in_use"]


def parameters_in_use(bound: BoundSpace, point: Mapping[str, Any], recipe: Recipe) -> frozenset[str]:
    """Names of the parameters that decided something of a recipe; no other value of the rest changes it.

    A switch that is off, or a size of zero, decided too; the parameters of the method that it left out did
    not.

    Args:
        point: the values of the space that `recipe` stands for.
    """
    found: set[str] = set()
    for unit in bound.units:
        place = _Reading(point)
        if bound.where(unit, place) == ():
            found |= place.names
            continue
        inside = _Reading(point)
        present = bound.item(unit, point) is not None
        _UnitReader(bound, unit, point, inside, present).item(unit.template.node)
        found |= inside.names
        if present:
            found |= place.names

    # The training section, without the groups of absent entries.
    reading = _Reading(point)
    context = bound.context(reading, None)
    section = _chosen(bound.templates.training, context)
    for name, node in section.nodes.items() if isinstance(section, Mapped) else ():
        groups = _chosen(node, context) if name == "groups" else None
        if not isinstance(groups, Mapped):
            node.fill(context)
            continue
        for group, inner in groups.nodes.items():
            alone: Any = {"groups": {group: {}}}
            alone = alone if bound.deep_head else drop_head_parts(alone)
            if drop_groups(alone, recipe.layers, recipe.model)["groups"]:
                inner.fill(context)
    return frozenset(found | reading.names)


class _Reading(Mapping[str, Any]):
    """Values that remember which of them were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class _UnitReader:
    """Reads the values that decide whether each part of a unit is there, and all values of those that are.

    Args:
        noted: the values of `point`; notes which are read.
        present: whether anything of the unit is in the recipe.
    """

    def __init__(
        self, bound: BoundSpace, unit: Unit, point: Mapping[str, Any], noted: _Reading, present: bool
    ) -> None:
        self._spec, self._stacks, self._present = bound.spec, bound.stacks(unit, point), present
        self._silent, self._context = bound.context(point, unit.layer), bound.context(noted, unit.layer)

    def item(self, node: Node) -> None:
        """Read a template of items."""
        found = _chosen(node, self._context)
        if isinstance(found, Listed):
            for child in found.nodes:
                self.item(child)
        elif isinstance(found, Mapped):
            # Values that are read to see this are not noted.
            absent = not self._present or (
                prune(found.fill(self._silent), self._spec, self._stacks) is ABSENT
            )
            for name, body in found.nodes.items():
                if is_composition(name):
                    self._composition(body, absent)
                elif not absent:
                    body.fill(self._context)
                elif name in method_names():
                    self._cause(name, body)

    def _composition(self, node: Node, absent: bool) -> None:
        body = _chosen(node, self._context)
        if not isinstance(body, Mapped):
            self.item(node)
            return
        for name, inner in body.nodes.items():
            if name == "children":
                self.item(inner)
            elif not absent:
                inner.fill(self._context)

    def _cause(self, name: str, node: Node) -> None:
        """Read why a method is left out: its size of zero, else sites that this backbone lacks."""
        body = _chosen(node, self._context)
        if not isinstance(body, Mapped):
            return
        size = body.nodes.get(size_field(get_method(name)) or "")
        if size is not None and is_zero(size.fill(self._context)):
            return
        if "sites" in body.nodes:
            body.nodes["sites"].fill(self._context)


def _chosen(node: Node, context: Context) -> Node | None:
    """The template that switches and choices lead to, `None` for nothing."""
    while isinstance(node, (Optional, Ref)):
        value = context.value(node.slot)
        if isinstance(node, Optional):
            if not value:
                return None
            node = node.node
        elif node.slot.kind == "categorical":
            node = node.slot.options[value]
        else:
            return None
    return node

"""Which parameters of a space had a part in a recipe: the rank of a method that is absent had none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.composition import is_composition
from autopeft.method import get_method, method_names
from autopeft.recipe import Recipe
from autopeft.search.space.bound import BoundSpace, drop_groups, drop_head_parts
from autopeft.search.space.templates import (
    ABSENT,
    Context,
    Listed,
    Mapped,
    Node,
    Optional,
    Ref,
    fill,
    is_zero,
    prune,
    size_field,
)
from autopeft.spec import BackboneSpec

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
        silent, noted = bound.context(point, unit.layer), bound.context(inside, unit.layer)
        _read_items(unit.template.node, noted, silent, bound.spec, bound.stacks(unit, point), present)
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
            fill(node, context)
            continue
        for group, inner in groups.nodes.items():
            alone: Any = {"groups": {group: {}}}
            alone = alone if bound.deep_head else drop_head_parts(alone)
            if drop_groups(alone, recipe.layers, recipe.model)["groups"]:
                fill(inner, context)
    return frozenset(found | reading.names)


@dataclass(eq=False)
class _Reading(Mapping[str, Any]):
    """Values that remember the `names` of those that were read."""

    known: Mapping[str, Any]
    names: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _read_items(
    node: Node,
    noted: Context,
    silent: Context,
    spec: BackboneSpec,
    stacks: tuple[str, ...] | None,
    present: bool,
) -> None:
    """Read the values that decide whether each part of a unit is there, and all values of those that are.

    Args:
        node: a template of items.
        noted: its values note which are read; those of `silent`, the same ones, do not.
        stacks: those that the unit's block covers.
        present: whether anything of the unit is in the recipe.
    """
    found = _chosen(node, noted)
    if isinstance(found, Listed):
        for child in found.nodes:
            _read_items(child, noted, silent, spec, stacks, present)
    if not isinstance(found, Mapped):
        return
    absent = not present or prune(fill(found, silent), spec, stacks) is ABSENT
    for name, inner in found.nodes.items():
        if is_composition(name):
            # Its children are items; its own options count where it is there.
            body = _chosen(inner, noted)
            for key, option in body.nodes.items() if isinstance(body, Mapped) else (("children", inner),):
                if key == "children":
                    _read_items(option, noted, silent, spec, stacks, present)
                elif not absent:
                    fill(option, noted)
        elif not absent:
            fill(inner, noted)
        elif name in method_names() and isinstance(body := _chosen(inner, noted), Mapped):
            # Why a method is left out: its size of zero, else sites that this backbone lacks.
            size = body.nodes.get(size_field(get_method(name)) or "")
            if (size is None or not is_zero(fill(size, noted))) and "sites" in body.nodes:
                fill(body.nodes["sites"], noted)


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

"""Counts and hashes of the points of a bound space, without a recipe or a graph for each.

A unit of the space is a shape that its item parameters choose, at layers that its place parameters choose.
Both are remembered by the values that they read, so that a point costs a few look-ups. The result equals the
count of `BoundSpace.materialize`, errors included: where methods may clash or names may meet, the recipe is
built and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autopeft.counting import Counts, Measure, count
from autopeft.errors import UsageError
from autopeft.graph import WHOLE, Memo, Part, Shape, build_graph, clash, hash_of, parts_of, total_of
from autopeft.method import method_names
from autopeft.recipe import CompositionItem, Item, Recipe
from autopeft.search.space.bound import BoundSpace, Unit, blocks_of, key_of
from autopeft.search.space.templates import Const, Listed, Mapped, Node, Optional, Ref, Scaled

__all__ = ["IMPOSSIBLE", "PointCounter"]

IMPOSSIBLE = 1 << 60
"""The cost of a unit that cannot act, such as a gate around a method that no gate can hold: more than any
budget, so that repair goes elsewhere."""
_PLACES = 1 << 14
_SHAPES = 1 << 11

Masks = tuple[int, ...]
"""The layers of a unit, one mask for each of the recipe's blocks that it stands in."""


class _Group:
    """The units of one block in one layer, or in all of its layers; or those of the model."""

    def __init__(self, bound: BoundSpace, units: Sequence[Unit]) -> None:
        self._bound, self._first = bound, units[0]
        self._mask = parts_of(bound.spec).masks.mask
        self._key = key_of(units[0].place_parameters)
        self._known: Memo[Any, Masks] = Memo(_PLACES)
        self.units = [_Place(bound, unit, self) for unit in units]

    def masks(self, values: Mapping[str, Any]) -> Masks:
        key = self._key(values)
        found = self._known.get(key)
        if found is None:
            where = self._bound.where(self._first, values)
            masks = (WHOLE,) if where is None else tuple([self._mask(at, stack) for at, stack in where])
            found = self._known.keep(key, masks)
        return found


class _Place:
    """The shapes of one unit, by the values of its parameters."""

    def __init__(self, bound: BoundSpace, unit: Unit, group: _Group) -> None:
        self._bound, self._unit, self.group = bound, unit, group
        self._shape = parts_of(bound.spec).shape
        self.key = unit.key
        self.known: Memo[Any, tuple[Shape | None, tuple[str, ...]]] = Memo(_SHAPES)

    def read(self, values: Mapping[str, Any]) -> tuple[Shape | None, tuple[str, ...]]:
        """The shape, `None` where the unit is absent, and its names given by `as:`."""
        key = self.key(values)
        found = self.known.get(key)
        if found is None:
            item = self._bound.item(self._unit, values)
            found = (None, ()) if item is None else (self._shape(item), tuple(_aliases(item)))
            self.known.keep(key, found)
        return found


class PointCounter:
    """Counts and hashes points of a bound space. `bound.kept(PointCounter)` is the one of a space."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound = bound
        groups: dict[Any, list[Unit]] = {}
        for unit in bound.units:
            groups.setdefault((unit.block, unit.layer), []).append(unit)
        self._groups = [_Group(bound, units) for units in groups.values()]
        self._places = [place for group in self._groups for place in group.units]
        items = [unit.template.node for unit in bound.units]
        self._aliased = any(_asks_for_names(node) for node in items)
        self._sound_names: set[str] = set()
        self._training_fits = _always_fits(bound.templates.training)

    def _total(self, values: Mapping[str, Any]) -> tuple[list[Part], int, int] | None:
        """The parts of a point with their deployed and trained parameters; `None` where only the point's
        recipe can tell them: it is empty, or its methods cannot act together.

        Raises:
            RecipeError: a value is missing, unknown or not allowed.
        """
        self.bound.check(values)
        parts: list[Part] = []
        try:
            for group in self._groups:
                masks = group.masks(values)
                for place in group.units:
                    shape = (place.known.get(place.key(values)) or place.read(values))[0]
                    if shape is not None:
                        for mask in masks:
                            parts.append((shape, mask))
            deployed, trained = total_of(parts)
        except UsageError:
            return None
        if not parts:
            return None
        # The reader of recipes refuses wrong names and training sections.
        if not self._training_fits:
            self.bound.materialize(values)
        elif self._aliased:
            names = [
                name
                for group in self._groups
                for place in group.units
                for _ in group.masks(values)
                for name in place.read(values)[1]
            ]
            if len(set(names)) < len(names) or not self._sound_names.issuperset(names):
                self.bound.materialize(values)
                # An entry without `as:` is called after its method, with a number (`lora_2`).
                self._sound_names.update(n for n in names if n.rpartition("_")[0] not in method_names())
        return None if clash(parts) else (parts, deployed, trained)

    def measure(self, values: Mapping[str, Any]) -> Measure:
        """Count and hash a point.

        Raises:
            EmptyRecipe: nothing is attached.
            RecipeError: a value is missing, unknown or not allowed.
            UsageError: methods of the point cannot act together.
        """
        found = self._total(values)
        if found is not None:
            return Measure(found[1], found[2], hash_of(found[0]))
        graph = build_graph(self.bound.materialize(values), self.bound.spec)
        total = graph.parameter_count()
        return Measure(total.deployed, total.trained, graph.hash())

    def count(self, values: Mapping[str, Any], *, head: int = 0) -> Counts:
        """Count a point (errors: see `measure`)."""
        found = self._total(values)
        if found is not None:
            return Counts(found[1], found[2], head, self.bound.spec.parameters)
        return count(self.bound.materialize(values), self.bound.spec, head=head)

    def costs(self, units: Iterable[Unit], values: Mapping[str, Any]) -> list[int | None]:
        """Deployed parameters of each of these units: `None` where it is absent, `IMPOSSIBLE` where it cannot
        act. `values` have to be allowed ones."""
        found: list[int | None] = []
        group: _Group | None = None
        masks: Masks = ()
        for unit in units:
            place = self._places[unit.index]
            if place.group is not group:
                group = place.group
                masks = group.masks(values)
            shape = (place.known.get(place.key(values)) or place.read(values))[0] if masks else None
            found.append(None if shape is None else self._cost(unit, shape, masks, values))
        return found

    def _cost(self, unit: Unit, shape: Shape, masks: Masks, values: Mapping[str, Any]) -> int:
        try:
            if len(masks) == 1 and not shape.may_clash:
                return shape.count(masks[0])[0]
            parts = [(shape, mask) for mask in masks]
            if not clash(parts):
                return total_of(parts)[0]
        except UsageError:
            pass  # methods that may clash are counted by the recipe, below
        item, where = self.bound.item(unit, values), self.bound.where(unit, values)
        assert item is not None, "what is absent costs nothing"
        try:
            if where is None:
                alone = Recipe.model_validate({"model": (item,)})
            else:
                alone = Recipe(layers=tuple(blocks_of((item,), where)))
            return count(alone, self.bound.spec).deployed
        except UsageError:
            return IMPOSSIBLE


def _aliases(item: Item) -> list[str]:
    """The `as:` of an item and of all below it."""
    below = item.children if isinstance(item, CompositionItem) else ()
    own = [] if item.alias is None else [item.alias]
    return own + [name for child in below for name in _aliases(child)]


def _asks_for_names(node: Node) -> bool:
    """Whether an item of the space may have an `as:`."""
    if isinstance(node, Mapped):
        return "as" in node.nodes or any(map(_asks_for_names, node.nodes.values()))
    return any(map(_asks_for_names, _below(node)))


def _always_fits(node: Node) -> bool:
    """Whether a training section is valid whatever the values.

    The compiler has checked each option and each end of a range, and a number between two valid ones is
    valid. What remains are bounds that depend on the backbone, and configs of policies.
    """
    if isinstance(node, Mapped):
        policies = node.nodes.get("policies")
        if policies is not None and list(policies.slots()):
            return False
        return all(map(_always_fits, node.nodes.values()))
    if isinstance(node, Ref):
        ends = () if node.slot.kind == "categorical" else (node.slot.low, node.slot.high)
        return all(isinstance(end, Const) for end in ends) and all(map(_always_fits, _below(node)))
    return isinstance(node, (Const, Listed, Optional, Scaled)) and all(map(_always_fits, _below(node)))


def _below(node: Node) -> Iterable[Node]:
    if isinstance(node, Listed):
        return node.nodes
    if isinstance(node, Optional):
        return (node.node,)
    if isinstance(node, Scaled):
        return (node.number, node.size)
    return node.slot.options.values() if isinstance(node, Ref) else ()

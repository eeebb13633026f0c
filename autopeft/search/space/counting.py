"""Counts and hashes of the points of a bound space, without a recipe or a graph for each.

A unit of the space is a shape that its item parameters choose, at layers that its place parameters choose.
Both are remembered by the values that they read, so that a point costs a few look-ups. The result equals the
count of `BoundSpace.materialize`, errors included: where methods may clash or names may meet, the recipe is
built and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.counting import Counts, Measure, count
from autopeft.errors import UsageError
from autopeft.graph import WHOLE, Memo, Part, Shape, build_graph, clash, hash_of, parts_of, total_of
from autopeft.method import method_names
from autopeft.recipe import CompositionItem, Item, Recipe
from autopeft.search.space.bound import BoundSpace, Unit, blocks_of, key_of
from autopeft.search.space.templates import Const, Hidden, Last, Mapped, Ref, slots_of, walk

__all__ = ["IMPOSSIBLE", "PointCounter"]

IMPOSSIBLE = 1 << 60
"""The cost of a unit that cannot act, such as a gate around a method that no gate can hold: more than any
budget, so that repair goes elsewhere."""
_PLACES = 1 << 14
_SHAPES = 1 << 11

Masks = tuple[int, ...]
"""The layers of a unit, one mask for each of the recipe's blocks that it stands in."""


@dataclass(frozen=True, eq=False)
class _Group:
    """The units of one block in one layer, or in all of its layers; or those of the model.

    Attributes:
        key: of values, those that decide where the units are.
        masks: the layers that are known, by key.
    """

    units: tuple[Unit, ...]
    key: Callable[[Mapping[str, Any]], Any]
    masks: Memo[Any, Masks] = field(default_factory=lambda: Memo(_PLACES))


Found = tuple[Shape | None, tuple[str, ...]]
"""The shape of a unit, `None` where it is absent, and its names given by `as:`."""


class PointCounter:
    """Counts and hashes points of a bound space. `bound.kept(PointCounter)` is the one of a space."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound, self._parts = bound, parts_of(bound.spec)
        groups: dict[Any, list[Unit]] = {}
        for unit in bound.units:
            groups.setdefault((unit.block, unit.layer), []).append(unit)
        self._groups = [_Group(tuple(units), key_of(units[0].place_parameters)) for units in groups.values()]
        self._group_of = {unit.index: group for group in self._groups for unit in group.units}
        self._shapes: list[Memo[Any, Found]] = [Memo(_SHAPES) for _ in bound.units]
        self._sound_names: set[str] = set()
        every = (node for unit in bound.units for node in walk(unit.template.node))
        self._aliased = any(isinstance(node, Mapped) and "as" in node.nodes for node in every)

        # Whether the training section is valid whatever the values. The compiler has checked each option and
        # each end of a range, and a number between two valid ones is valid. What remains are bounds that
        # depend on the backbone, and configs of policies.
        self._training_fits = True
        for node in walk(bound.templates.training):
            if isinstance(node, Ref):
                ends = () if node.slot.kind == "categorical" else (node.slot.low, node.slot.high)
                self._training_fits &= all(isinstance(end, Const) for end in ends)
            elif isinstance(node, Mapped):
                policies = node.nodes.get("policies")
                self._training_fits &= policies is None or not slots_of(policies)
            else:
                self._training_fits &= not isinstance(node, (Hidden, Last))

    def _masks(self, group: _Group, values: Mapping[str, Any]) -> Masks:
        key = group.key(values)
        found = group.masks.get(key)
        if found is None:
            where, mask = self.bound.where(group.units[0], values), self._parts.masks.mask
            masks = (WHOLE,) if where is None else tuple([mask(at, stack) for at, stack in where])
            found = group.masks.keep(key, masks)
        return found

    def _read(self, unit: Unit, values: Mapping[str, Any]) -> Found:
        key, known = unit.key(values), self._shapes[unit.index]
        found = known.get(key)
        if found is None:
            item = self.bound.item(unit, values)
            shape = None if item is None else self._parts.shape(item)
            found = known.keep(key, (shape, () if item is None else tuple(_aliases(item))))
        return found

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
                masks = self._masks(group, values)
                for unit in group.units:
                    shape = self._read(unit, values)[0]
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
                for unit in group.units
                for _ in self._masks(group, values)
                for name in self._read(unit, values)[1]
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
            if self._group_of[unit.index] is not group:
                group = self._group_of[unit.index]
                masks = self._masks(group, values)
            shape = self._read(unit, values)[0] if masks else None
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

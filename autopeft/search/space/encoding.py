"""The members of a space, and any recipe as far as it fits a backbone, as bags of placements."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from autopeft.errors import RecipeError, UsageError
from autopeft.graph import WHOLE, Memo, parts_of
from autopeft.recipe import (
    CompositionItem,
    EntryItem,
    Item,
    LayerBlock,
    Recipe,
    resolve_layers,
)
from autopeft.recipe.parse import read_training
from autopeft.recipe.problems import Problems
from autopeft.search.space.bound import BoundSpace, Unit
from autopeft.search.space.layers import key_of
from autopeft.search.space.similarity import (
    Component,
    Piece,
    Placement,
    PlacementBag,
    RecipeDistance,
    Training,
    spans,
)
from autopeft.search.space.simplify import size_field

__all__ = ["Encoder", "encoder_of"]

_ENTRIES = 1000
_DEEPEST = 10_000
_KINDS, _PIECES, _TRAININGS = 1 << 12, 1 << 14, 1 << 8


class Encoder:
    """The members of a space, and any recipe on its backbone, as bags of placements."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound, self._parts = bound, parts_of(bound.spec)
        self.comparison = RecipeDistance(bound.spec)
        self._bits = {site.key: 1 << n for n, site in enumerate(bound.spec.sites)}
        self._nowhere = 1 << len(self._bits)
        self._kinds: Memo[str, Component] = Memo(_KINDS)
        self._trainings: Memo[Any, Training] = Memo(_TRAININGS)
        names = [slot.parameter(None) for slot in bound.templates.training.slots()]
        self._training_key = key_of(dict.fromkeys(names))
        held = max(64, _PIECES // max(1, len(bound.units)))
        self._units: list[tuple[Unit, Callable[[Any], Any], Memo[Any, tuple[Piece, ...]]]] = [
            (unit, key_of(dict.fromkeys((*unit.item_parameters, *unit.place_parameters))), Memo(held))
            for unit in bound.units
        ]

    def at(self, values: Mapping[str, Any]) -> PlacementBag:
        """The member with these values."""
        pieces: list[Piece] = []
        for unit, key, known in self._units:
            at = key(values)
            found = known.get(at)
            pieces.extend(known.keep(at, self._pieces(unit, values)) if found is None else found)
        at = self._training_key(values)
        training = self._trainings.get(at)
        return PlacementBag(pieces, training or self._trainings.keep(at, self._section(values)))

    def _pieces(self, unit: Unit, values: Mapping[str, Any]) -> tuple[Piece, ...]:
        item, where = self.bound.item(unit, values), self.bound.where(unit, values)
        if item is None:
            return ()
        mask_of = self._parts.masks.mask
        masks = [WHOLE] if where is None else [mask_of(at, stack) for at, stack in where]
        return tuple(self._piece(item, mask) for mask in masks)

    def _section(self, values: Mapping[str, Any]) -> Training:
        tree = {"training": self.bound.training(values)}
        return Training(read_training(tree, Problems(tree, "space")), numbered=True)

    def _piece(self, item: Item, mask: int) -> Piece:
        placements: list[Placement] = []
        self._walk(item, mask, "", placements)
        return Piece(tuple(placements), self._parts.shape(item).text(mask))

    def _walk(self, item: Item, mask: int, inside: str, placements: list[Placement]) -> int:
        """Add the placements of an item; returns the sites that they cover."""
        if isinstance(item, EntryItem):
            shape = self._parts.leaf(item, item.method)
            sites = sum(self._bits[s.key] for s in shape.sites(mask))
            config = shape.config.model_dump(mode="json", exclude={"sites"})
            kind = self._kind(item.method, config, size_field(shape.method), inside)
            at = sites if shape.placed(mask) else self._nowhere
            placements.append(Placement(kind, at, item.alias, True))
            return sites
        sites = 0
        for child in item.children:
            sites |= self._walk(child, mask, f"{inside}/{item.kind}", placements)
        kind = self._kind(item.kind, dict(item.options), None, inside)
        placements.append(Placement(kind, sites, item.alias, self._trains(item, mask)))
        return sites

    def _trains(self, item: CompositionItem, mask: int) -> bool:
        """Whether a composition has parameters of its own."""
        shape = self._parts.shape
        try:
            return shape(item).count(mask)[1] > sum(shape(child).count(mask)[1] for child in item.children)
        except UsageError:
            # It does not hold together, which whoever takes the point checks.
            return False

    def _kind(self, name: str, config: Mapping[str, Any], size: str | None, inside: str) -> Component:
        key = json.dumps([name, inside, config], sort_keys=True)
        found = self._kinds.get(key)
        return self._kinds.keep(key, Component(name, config, size, inside)) if found is None else found

    def read(self, recipe: Recipe) -> tuple[PlacementBag, list[str]]:
        """A recipe as far as it fits the backbone, and in words what does not."""
        entries, lost = recipe.entries(), list[str]()
        if len(entries) > _ENTRIES:
            raise RecipeError(
                f"Recipe {recipe.name!r} has {len(entries)} entries; at most {_ENTRIES} are read."
            )
        names = iter(entry.name for entry in entries)
        pieces: list[Piece] = []
        for block in recipe.layers:
            mask = self._mask(block, lost)
            for item in block.attach:
                fitting = self._fitting(item, names, mask, lost)
                pieces += [] if fitting is None else [self._piece(fitting, mask)]
        for item in recipe.model:
            fitting = self._fitting(item, names, WHOLE, lost)
            pieces += [] if fitting is None else [self._piece(fitting, WHOLE)]
        training = recipe.training if self.bound.deep_head else recipe.training.without_head_parts()
        return PlacementBag(pieces, Training(training, numbered=False)), lost

    def _mask(self, block: LayerBlock, lost: list[str]) -> int:
        """The layers of a block that exist here."""
        mask, stacks = 0, [s for s in self.bound.spec.stacks if block.stack in ("all", s.name)]
        what = ", ".join(i.method if isinstance(i, EntryItem) else i.kind for i in block.attach)
        for stack in stacks:
            layers, all_there = _layers(block.at, stack.layers)
            mask |= sum(self._parts.masks.bits[stack.name, i] for i in layers)
            if not all_there:
                asked = block.at if isinstance(block.at, str) else spans(block.at)
                rest = f"only {spans(layers)}" if layers else "none"
                lost.append(f"{what} in layers {asked}: {rest} exist in this {stack.name} of {stack.layers}")
        if not stacks:
            lost.append(f"{what} is left out, since there is no {block.stack}")
        return mask

    def _fitting(self, item: Item, names: Iterator[str], mask: int, lost: list[str]) -> Item | None:
        """What the backbone can take of an item, its entries under their names; `None` for nothing."""
        if isinstance(item, CompositionItem):
            found = [self._fitting(child, names, mask, lost) for child in item.children]
            children = tuple(child for child in found if child is not None)
            return item.model_copy(update={"children": children}) if children else None
        item = item.model_copy(update={"alias": next(names)})
        if not mask:
            return None
        if "sites" in item.config:
            here = self.bound.spec.site_names()
            gone = [site for site in item.config["sites"] or () if site not in here]
            if gone:
                lost.append(f"{item.method} is left out of {', '.join(gone)}, which this backbone lacks")
                left = [site for site in item.config["sites"] if site in here]
                if not left:
                    return None
                item = item.model_copy(update={"config": {**item.config, "sites": left}})
        try:
            self._parts.leaf(item, item.method).count(mask)
        except UsageError as error:
            lost.append(f"{item.method} is left out: {str(error).rstrip('.')}")
            return None
        return item


def encoder_of(bound: BoundSpace) -> Encoder:
    """The members of a space, the same object for each call."""
    found = bound.kept.get(Encoder)
    if found is None:
        found = bound.kept[Encoder] = Encoder(bound)
    assert isinstance(found, Encoder)
    return found


def _layers(at: Any, n: int) -> tuple[list[int], bool]:
    """The layers of a stack of `n` that `at` names, and whether all of them exist."""
    try:
        return list(resolve_layers(at, n)), True
    except RecipeError:
        if isinstance(at, tuple):
            asked: Collection[int] = at
        elif at.startswith("last"):
            asked = range(n)
        else:
            asked = () if at.startswith("g") else resolve_layers(at, _DEEPEST)
        return [i for i in asked if i < n], False

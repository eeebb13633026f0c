"""Warm starts: what other searches found, as points of this space.

A recipe of another run may come from another space, budget, backbone or version, so recipes travel, not
parameters. `values_of` finds the point whose recipe is the given one, or is nearest to it, by descent on a
distance; it knows no names, so it works on any space. Recipes are compared as bags of *cells*: each entry and
each composition at each of its sites, with its configuration, learning rate and weight decay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from autopeft.errors import RecipeError, UsageError, near
from autopeft.graph import WHOLE, Memo, build_graph, parts_of
from autopeft.method import get_method
from autopeft.quantity import parse_quantity
from autopeft.recipe import (
    CompositionItem,
    EntryItem,
    Item,
    LayerBlock,
    Recipe,
    TrainingSection,
    recipe_names,
    resolve_layers,
)
from autopeft.recipe.parse import read_training
from autopeft.recipe.problems import Problems
from autopeft.search.front import pareto_front
from autopeft.search.jobs import CountTable, TrialRecord
from autopeft.search.repair import smallest
from autopeft.search.runfolder import RunFolder, list_runs, load_run
from autopeft.search.space_bound import BoundSpace, Parameter, Unit
from autopeft.search.space_counts import counter_of
from autopeft.search.space_nodes import Context
from autopeft.search.space_places import key_of
from autopeft.search.space_prune import size_field
from autopeft.search.starts import starting_points

__all__ = ["Match", "points_from", "values_of"]

_EVALUATIONS = 20_000
_CELLS = 64  # cells and pairs of them that count as one more evaluation
_STARTS = 8
_ENTRIES = 1000
_NUMBERS = 64
_WHOLE_RANGE = 256
_VARIANTS = 1024
_STEPS = 32
_DEEPEST = 10_000
_MEMO, _PIECES, _TRAININGS = 1 << 12, 1 << 14, 1 << 8
_NOTHING = 1e-12

# Shares of the distance. A cell is worth more than any of its settings, and those more than the grouping.
_SIZE, _OTHER, _MOST_OTHER = 0.5, 0.1, 0.4
_RELATIVE, _INSIDE = 0.2, 0.9
_SETTINGS = 0.25
_TRAINING = 0.02
_GROUPING = 1e-5
_LEAST = 1e-6  # between numbers that differ, however little

_MAX_LINE = 1 << 20
_MAX_FILE = 64 << 20
_MAX_RECIPE = 64 << 10
_MAX_INVALID = 20
_SHOWN = 5

Settings = tuple[float, float]
"""Learning rate and weight decay."""


@dataclass(frozen=True)
class Match:
    """A point of a space for a recipe.

    Attributes:
        values: one value for each parameter of the space.
        exact: whether the point's recipe is the given one (equal `trial_hash`).
        distance: from the recipe to the point's: 0 where `exact`, near 1 where they have little in common.
        missing: what differs, in words; empty where `exact`.
        overlap: share of the cells that the two have in common, like ones in part: 0 for nothing, 1 for all.
    """

    values: dict[str, Any]
    exact: bool
    distance: float
    missing: list[str]
    overlap: float = 1.0


def values_of(recipe: Recipe, bound: BoundSpace) -> Match:
    """The point of a space whose recipe is `recipe`, or the nearest one: the inverse of `bound.materialize`.

    Parts of the recipe that the backbone cannot take are left out: layers beyond the last, missing sites and
    stacks, methods that do not fit. The work is bounded, and the same input always gives the same output.

    Raises:
        RecipeError: nothing of the recipe fits the backbone, or it has too many entries.
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    members = _members_of(bound)
    wanted, lost = members.read(recipe)
    if not wanted.size:
        why = "; ".join(lost) or "it has no entries"
        raise RecipeError(
            f"Recipe {recipe.name!r} has nothing that this {bound.spec.family} can take: {why}."
        )
    values, distance = _Descent(members, wanted).nearest()
    try:
        hashes = {build_graph(r, bound.spec).trial_hash() for r in (recipe, bound.materialize(values))}
    except UsageError:
        # The recipe as it stands does not fit the backbone; the point's does.
        hashes = set()
    if not lost and len(hashes) == 1:
        return Match(values, exact=True, distance=0.0, missing=[])
    ours = members.at(values)
    missing = list(dict.fromkeys((*lost, *members.differences(ours, wanted))))
    missing = missing or ["the same methods at the same sites, as other entries"]
    overlap = 2 * members.overlap(ours, wanted).common / (ours.size + wanted.size)
    return Match(values, False, distance, missing, overlap)


@dataclass(frozen=True, eq=False)
class _Kind:
    """What stands in a cell: a method or a composition, its configuration, and the compositions around it."""

    name: str
    config: Mapping[str, Any]
    size: str | None = None
    inside: str = ""

    @property
    def family(self) -> str:
        """Kinds of different families have nothing in common."""
        return self.size or self.name

    @property
    def label(self) -> str:
        return f"{self.name} {self.size} {_word(self.config.get(self.size))}" if self.size else self.name


class _Cell(NamedTuple):
    """A kind at some sites (a set of bits), under a name if it has one of its own, and whether it trains."""

    kind: _Kind
    sites: int
    name: str | None
    trains: bool


@dataclass(frozen=True, eq=False)
class _Piece:
    """An item at its layers: its cells, and its canonical structure."""

    cells: tuple[_Cell, ...]
    text: str


Settled = tuple[tuple[_Kind, Settings | None], int]
"""A kind with its settings, at some sites."""


class _Training:
    """A training section; groups of a space (`numbered`) also hold for aliases with a layer's number."""

    def __init__(self, section: TrainingSection, *, numbered: bool) -> None:
        self._section, self._numbered = section, numbered
        self._settled: Memo[_Piece, list[Settled]] = Memo(_MEMO)
        outside = {"learning_rate", "weight_decay", "groups", "policies"}
        self.shared = _Kind("training", section.model_dump(mode="json", exclude=outside))
        self.policies = [_Kind(p.method, p.method_config().model_dump(mode="json")) for p in section.policies]
        self.head = self._of("head", "head")

    def _of(self, name: str, method: str) -> Settings:
        """The settings of an entry."""
        groups, (base, _, number) = self._section.groups, name.rpartition("_")
        plain = groups.get(base) if self._numbered and number.isdigit() else None
        group = groups.get(name) or plain or groups.get(method)
        rate = None if group is None else group.learning_rate
        decay = None if group is None else group.weight_decay
        return (
            self._section.learning_rate if rate is None else rate,
            self._section.weight_decay if decay is None else decay,
        )

    def settle(self, piece: _Piece) -> list[Settled]:
        """The cells of a piece with their settings."""
        found = self._settled.get(piece)
        if found is None:
            # A space names no entry by its position (`lora_2`); the entries of a recipe carry their names.
            found = [
                ((kind, self._of(name or kind.name, kind.name) if trains else None), sites)
                for kind, sites, name, trains in piece.cells
            ]
            self._settled.keep(piece, found)
        return found


class _Bag:
    """A recipe as cells: those of one kind and the same settings together."""

    def __init__(self, pieces: Sequence[_Piece], training: _Training) -> None:
        merged: dict[tuple[_Kind, Settings | None], int] = {}
        self.cells: list[tuple[_Kind, Settings | None, int]] = []
        for piece in pieces:
            for key, sites in training.settle(piece):
                before = merged.get(key, 0)
                twice = before & sites
                if twice:
                    self.cells.append((*key, twice))
                merged[key] = before | sites
        self.cells += [(*key, sites) for key, sites in merged.items()]
        self.training = training
        self.texts = frozenset([piece.text for piece in pieces])
        self.size = sum([sites.bit_count() for _, _, sites in self.cells])

    @cached_property
    def families(self) -> dict[str, list[tuple[int, _Kind, Settings | None, int]]]:
        """Cells with their positions, by the family of their kinds."""
        found: dict[str, list[tuple[int, _Kind, Settings | None, int]]] = {}
        for j, cell in enumerate(self.cells):
            found.setdefault(cell[0].family, []).append((j, *cell))
        return found


class _Overlap(NamedTuple):
    """Which cells go together: (likeness, ours, wanted, sites), and the sites that are left of each."""

    common: float
    pairs: list[tuple[float, int, int, int]]
    ours: list[int]
    wanted: list[int]
    compared: int


class _Members:
    """The members of a space, as bags of cells."""

    def __init__(self, bound: BoundSpace) -> None:
        self.bound, self._parts = bound, parts_of(bound.spec)
        self._bits = {site.key: 1 << n for n, site in enumerate(bound.spec.sites)}
        self._nowhere = 1 << len(self._bits)
        self._kinds: Memo[str, _Kind] = Memo(_MEMO)
        self._alike: Memo[tuple[_Kind, _Kind], float] = Memo(_MEMO)
        self._trainings: Memo[Any, _Training] = Memo(_TRAININGS)
        names = [slot.parameter(None) for slot in bound.templates.training.slots()]
        self._training_key = key_of(dict.fromkeys(names))
        held = max(64, _PIECES // max(1, len(bound.units)))
        self._units: list[tuple[Unit, Callable[[Any], Any], Memo[Any, tuple[_Piece, ...]]]] = [
            (unit, key_of(dict.fromkeys((*unit.item_parameters, *unit.place_parameters))), Memo(held))
            for unit in bound.units
        ]

    def at(self, values: Mapping[str, Any]) -> _Bag:
        """The member with these values."""
        pieces: list[_Piece] = []
        for unit, key, known in self._units:
            at = key(values)
            found = known.get(at)
            pieces.extend(known.keep(at, self._pieces(unit, values)) if found is None else found)
        at = self._training_key(values)
        training = self._trainings.get(at)
        return _Bag(pieces, training or self._trainings.keep(at, self._section(values)))

    def _pieces(self, unit: Unit, values: Mapping[str, Any]) -> tuple[_Piece, ...]:
        item, where = self.bound.item(unit, values), self.bound.where(unit, values)
        if item is None:
            return ()
        places = self._parts.places
        masks = [WHOLE] if where is None else [places.mask(at, stack) for at, stack in where]
        return tuple(self._piece(item, mask) for mask in masks)

    def _section(self, values: Mapping[str, Any]) -> _Training:
        spec = self.bound.spec
        context = Context(values, spec.stacks[0].hidden, max(stack.layers for stack in spec.stacks) - 1)
        tree = {"training": self.bound.templates.training.fill(context)}
        return _Training(read_training(tree, Problems(tree, "space")), numbered=True)

    def _piece(self, item: Item, mask: int) -> _Piece:
        cells: list[_Cell] = []
        self._walk(item, mask, "", cells)
        return _Piece(tuple(cells), self._parts.shape(item).text(mask))

    def _walk(self, item: Item, mask: int, inside: str, cells: list[_Cell]) -> int:
        """Add the cells of an item; returns the sites that they cover."""
        if isinstance(item, EntryItem):
            shape, method = self._parts.leaf(item, item.method), get_method(item.method)
            sites = sum(self._bits[s.key] for s in shape.sites(mask))
            config = shape.config.model_dump(mode="json", exclude={"sites"})
            kind = self._kind(item.method, config, size_field(method), inside)
            cells.append(_Cell(kind, sites if method.traits.sites else self._nowhere, item.alias, True))
            return sites
        sites = 0
        for child in item.children:
            sites |= self._walk(child, mask, f"{inside}/{item.kind}", cells)
        kind = self._kind(item.kind, dict(item.options), None, inside)
        cells.append(_Cell(kind, sites, item.alias, self._trains(item, mask)))
        return sites

    def _trains(self, item: CompositionItem, mask: int) -> bool:
        """Whether a composition has parameters of its own."""
        shape = self._parts.shape
        try:
            return shape(item).count(mask)[1] > sum(shape(child).count(mask)[1] for child in item.children)
        except UsageError:
            # It does not hold together, which whoever takes the point checks.
            return False

    def _kind(self, name: str, config: Mapping[str, Any], size: str | None, inside: str) -> _Kind:
        key = json.dumps([name, inside, config], sort_keys=True)
        found = self._kinds.get(key)
        return self._kinds.keep(key, _Kind(name, config, size, inside)) if found is None else found

    def read(self, recipe: Recipe) -> tuple[_Bag, list[str]]:
        """A recipe as far as it fits the backbone, and in words what does not."""
        entries, lost = recipe.entries(), list[str]()
        if len(entries) > _ENTRIES:
            raise RecipeError(
                f"Recipe {recipe.name!r} has {len(entries)} entries; at most {_ENTRIES} are read."
            )
        names = iter(entry.name for entry in entries)
        pieces: list[_Piece] = []
        for block in recipe.layers:
            mask = self._mask(block, lost)
            for item in block.attach:
                fitting = self._fitting(item, names, mask, lost)
                pieces += [] if fitting is None else [self._piece(fitting, mask)]
        for item in recipe.model:
            fitting = self._fitting(item, names, WHOLE, lost)
            pieces += [] if fitting is None else [self._piece(fitting, WHOLE)]
        return _Bag(pieces, _Training(recipe.training, numbered=False)), lost

    def _mask(self, block: LayerBlock, lost: list[str]) -> int:
        """The layers of a block that exist here."""
        mask, stacks = 0, [s for s in self.bound.spec.stacks if block.stack in ("all", s.name)]
        what = ", ".join(i.method if isinstance(i, EntryItem) else i.kind for i in block.attach)
        for stack in stacks:
            layers, all_there = _layers(block.at, stack.layers)
            mask |= sum(self._parts.places.bits[stack.name, i] for i in layers)
            if not all_there:
                asked = block.at if isinstance(block.at, str) else _spans(block.at)
                rest = f"only {_spans(layers)}" if layers else "none"
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

    def overlap(self, ours: _Bag, wanted: _Bag) -> _Overlap:
        """Match cells site by site, the most alike first."""
        pairs, compared, families = [], 0, wanted.families
        for i, (kind, settings, sites) in enumerate(ours.cells):
            relatives = families.get(kind.family, ())
            compared += len(relatives)
            for j, other, others, there in relatives:
                if sites & there:
                    alike = 1.0 if kind is other else self._likeness(kind, other)
                    if settings != others:
                        alike *= 1 - _SETTINGS * _settings_gap(settings, others)
                    pairs.append((-alike, i, j))
        pairs.sort()
        left, rest = [c[2] for c in ours.cells], [c[2] for c in wanted.cells]
        found, common = [], 0.0
        for alike, i, j in pairs:
            both = left[i] & rest[j]
            if both:
                left[i] ^= both
                rest[j] ^= both
                common -= alike * both.bit_count()
                found.append((-alike, i, j, both))
        return _Overlap(common, found, left, rest, compared)

    def _likeness(self, a: _Kind, b: _Kind) -> float:
        """1 for the same, less for others of one family; a method may stand in for another."""
        found = self._alike.get((a, b))
        if found is None:
            size = _gap(a.config.get(a.size), b.config.get(a.size)) if a.size else 0.0
            other = sum(_gap(a.config.get(k), b.config.get(k)) for k in _keys(a, b) if k != a.size)
            found = 1 - _SIZE * size - min(_MOST_OTHER, _OTHER * other)
            if a.name != b.name:
                found = _RELATIVE * (1 - _SIZE * size)
            found = self._alike.keep((a, b), found if a.inside == b.inside else found * _INSIDE)
        return found

    def distance(self, ours: _Bag, wanted: _Bag) -> tuple[float, int]:
        """The distance of two recipes, and how many steps it took.

        It is a soft Sørensen–Dice distance of the cells: a share of both recipes, so that descent never
        gains by giving up all that they have in common.
        """
        total, overlap = ours.size + wanted.size, self.overlap(ours, wanted)
        apart = 1 - 2 * overlap.common / total if total else 1.0
        a, b = ours.training, wanted.training
        training = 0.0
        if a.head != b.head:
            training += _settings_gap(a.head, b.head)
        if a.shared.config != b.shared.config:
            training += 1 - self._likeness(a.shared, b.shared)
        for p, q in zip_longest(a.policies, b.policies):
            training += 1 if p is None or q is None else 1 - self._likeness(p, q)
        groups = len(ours.texts ^ wanted.texts) / max(1, len(ours.texts) + len(wanted.texts))
        steps = 1 + (len(ours.cells) + overlap.compared) // _CELLS
        return max(0.0, apart) + _TRAINING * training + _GROUPING * groups, steps

    def differences(self, ours: _Bag, wanted: _Bag) -> Iterator[str]:
        """What of `wanted` is not in `ours`, in words."""
        overlap = self.overlap(ours, wanted)
        for left, bag, fate in ((overlap.wanted, wanted, "is left out"), (overlap.ours, ours, "is added")):
            together: dict[_Kind, int] = {}
            for sites, (kind, _, _) in zip(left, bag.cells, strict=True):
                together[kind] = together.get(kind, 0) | sites
            yield from (f"{k.label}{self._where(s)} {fate}" for k, s in together.items() if s)
        a, b = wanted.training, ours.training
        both = [(wanted.cells[j], ours.cells[i]) for _, i, j, _ in overlap.pairs]
        kinds = [(theirs[0], mine[0]) for theirs, mine in both]
        for p, q in (*kinds, (a.shared, b.shared), *zip_longest(a.policies, b.policies)):
            yield from _changes(p, q)
        settings = [(theirs[0].name, theirs[1], mine[1]) for theirs, mine in both]
        yield from _settings_changes((*settings, ("head", a.head, b.head)))

    def _where(self, sites: int) -> str:
        """Sites in words: ` at q, v in layers 0-3`."""
        places = [s for s in self.bound.spec.sites if sites & self._bits[s.key]]
        names = dict.fromkeys(s.name for s in places)
        layers: dict[str, set[int]] = {}
        for s in places:
            layers.setdefault(s.stack, set()).update(() if s.layer is None else (s.layer,))
        several = len(self.bound.spec.stacks) > 1
        parts = [f"{f'{n} ' if several else ''}layers {_spans(i)}" for n, i in layers.items() if i]
        return (f" at {', '.join(names)}" if names else "") + (f" in {' and '.join(parts)}" if parts else "")


def _members_of(bound: BoundSpace) -> _Members:
    """The members of a space, the same object for each call."""
    found = bound.kept.get(_Members)
    if found is None:
        found = bound.kept[_Members] = _Members(bound)
    assert isinstance(found, _Members)
    return found


class _Descent:
    """From several starts to the member nearest to `wanted`: along single parameters, items, then pairs."""

    def __init__(self, members: _Members, wanted: _Bag) -> None:
        self._members, self._wanted, self._bound = members, wanted, members.bound
        self._counter = counter_of(self._bound)
        self._left = _EVALUATIONS
        self._known: dict[int, list[dict[str, Any]]] = {}
        numbers = sorted(set(_numbers(wanted)))[:_NUMBERS]
        found = {p.name: _candidates(p, numbers) for p in self._bound.parameters}
        self._choices = {name: choices for name, choices in found.items() if len(choices) > 1}

    def nearest(self) -> tuple[dict[str, Any], float]:
        """The values found, and their distance.

        Raises:
            EmptyRecipe: the space has no member on this backbone.
        """
        best: tuple[dict[str, Any], float] | None = None
        for start in self._starts():
            found = self._settle(start)
            if found is not None and (best is None or found[1] < best[1]):
                best = found
            if (best is not None and best[1] <= _NOTHING) or self._left < _EVALUATIONS // 2:
                break
        if best is None:
            values = dict(smallest(self._bound).values)
            best = values, self._distance(values)
        return self._in_pairs(*best)

    def _starts(self) -> Iterator[dict[str, Any]]:
        yield from starting_points(self._bound, _STARTS)
        yield self._bound.middle()
        # Nearly nothing: each parameter in turn at what leaves the fewest cells.
        values = self._bound.middle()
        for name, choices in self._choices.items():
            sizes = [self._members.at({**values, name: choice}).size for choice in choices]
            values[name] = choices[sizes.index(min(sizes))]
            self._left -= len(choices)
        yield values

    def _distance(self, values: Mapping[str, Any]) -> float:
        distance, steps = self._members.distance(self._members.at(values), self._wanted)
        self._left -= steps
        return distance

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the point is a recipe: not empty, and its methods can act together."""
        try:
            self._counter.count(values)
        except UsageError:
            return False
        return True

    def _settle(self, start: Mapping[str, Any]) -> tuple[dict[str, Any], float] | None:
        """Where descent leads, `None` for a point that is no recipe."""
        # Most points are recipes, so they are only checked on the way where descent ends in one that is not.
        for careful in (False, True):
            found = self._descend(start, careful)
            if self._holds(found[0]):
                return found
        return None

    def _descend(self, start: Mapping[str, Any], careful: bool) -> tuple[dict[str, Any], float]:
        """Descent along single parameters, and along whole items where those lead no further."""
        values = dict(start)
        distance = self._distance(values)
        moving = True
        while moving and self._left > 0 and distance > _NOTHING:
            single = ([{name: choice} for choice in choices] for name, choices in self._choices.items())
            whole = (self._variants(unit, values) for unit in self._bound.units)
            for neighbours in (single, whole):
                moving = False
                for moves in neighbours:
                    if self._left <= 0:
                        return values, distance
                    step = self._best(moves, values, distance, careful)
                    if step is not None:
                        distance, moving = step[0], True
                        values.update(step[1])
                if moving:
                    break
        return values, distance

    def _best(
        self, moves: Iterable[dict[str, Any]], values: Mapping[str, Any], distance: float, careful: bool
    ) -> tuple[float, dict[str, Any]] | None:
        """The move that leads nearest, where that is nearer than now."""
        reached = ((self._distance({**values, **move}), i, move) for i, move in enumerate(moves))
        found = sorted(r for r in reached if r[0] < distance - _NOTHING)
        if careful and self._holds(values):
            found = [next(r for r in (*found, (distance, -1, {})) if self._holds({**values, **r[2]}))]
        return (found[0][0], found[0][2]) if found and found[0][1] >= 0 else None

    def _variants(self, unit: Unit, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Values for each item that a unit can be; none where they are too many."""
        found = self._known.get(unit.index)
        if found is None:
            names = [name for name in unit.item_parameters if name in self._choices]
            items: dict[str, dict[str, Any]] = {}
            if len(names) > 1 and math.prod(len(self._choices[name]) for name in names) <= _VARIANTS:
                for chosen in product(*(self._choices[name] for name in names)):
                    move = dict(zip(names, chosen, strict=True))
                    items.setdefault(repr(self._bound.item(unit, {**values, **move})), move)
            found = self._known[unit.index] = list(items.values())
        return found

    def _in_pairs(self, values: dict[str, Any], distance: float) -> tuple[dict[str, Any], float]:
        """Descent along pairs of parameters where single ones lead no further."""
        moving = True
        while moving and distance > _NOTHING:
            moving = False
            for p, q in self._pairs():
                for a in self._choices[p]:
                    for b in self._choices[q]:
                        if self._left <= 0:
                            return values, distance
                        there = {**values, p: a, q: b}
                        if self._distance(there) < distance - _NOTHING:
                            found = self._settle(there)
                            if found is not None:
                                (values, distance), moving = found, True
        return values, distance

    def _pairs(self) -> Iterator[tuple[str, str]]:
        """All pairs of parameters, those that decide on one item together first."""
        items = [set(unit.item_parameters) for unit in self._bound.units]
        places = [{*unit.item_parameters, *unit.place_parameters} for unit in self._bound.units]
        seen: set[tuple[str, str]] = set()
        for names in (*items, *places, set(self._choices)):
            for pair in combinations([name for name in self._choices if name in names], 2):
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _candidates(p: Parameter, numbers: Sequence[float]) -> list[Any]:
    """The values of a parameter that are tried: all choices; of a wide range the recipe's own numbers."""
    if p.kind == "categorical":
        return list(p.choices)
    low, high = p.low, p.high
    if p.kind == "float":
        return sorted({min(max(float(x), float(low)), float(high)) for x in (*numbers, low, high)})
    if high - low < _WHOLE_RANGE:
        return list(range(int(low), int(high) + 1))
    parts = [i / _STEPS for i in range(_STEPS + 1)]
    grid = [low * (high / low) ** s if low > 0 else low + (high - low) * s for s in parts]
    return sorted({round(min(max(x, low), high)) for x in (*numbers, *grid)})


def _numbers(bag: _Bag) -> Iterator[float]:
    """Every number of a recipe's training section and configurations."""
    training = bag.training
    for kind in chain((c[0] for c in bag.cells), (training.shared, *training.policies)):
        yield from (n for value in kind.config.values() if (n := _number(value)) is not None)
    for settings in (training.head, *(c[1] for c in bag.cells)):
        yield from settings or ()


def _number(value: Any) -> float | None:
    """A number, or what a quantity such as `0.1%` amounts to."""
    if isinstance(value, str):
        try:
            return float(parse_quantity(value).value)
        except UsageError:
            return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _gap(a: Any, b: Any) -> float:
    """From 0 for equal values to 1; of numbers the difference relative to the larger."""
    if a == b and isinstance(a, bool) == isinstance(b, bool):
        return 0.0
    x, y = _number(a), _number(b)
    if x is None or y is None:
        return 1.0
    return min(1.0, max(_LEAST, abs(x - y) / (max(abs(x), abs(y)) or 1.0)))


def _settings_gap(a: Settings | None, b: Settings | None) -> float:
    """From 0 for the same to less than 1, by the ratio of the learning rates and the weight decays."""
    if a is None or b is None or a == b:
        return 0.0
    ratio = abs(math.log(a[0] / b[0]))
    return max(_LEAST, 0.8 * ratio / (1 + ratio) + 0.2 * _gap(a[1], b[1]))


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


def _spans(indices: Iterable[int]) -> str:
    """`0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for i in sorted(indices):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _word(value: Any) -> str:
    """A setting as text, short and printable."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = "unset" if value is None else str(value)
    return text if text.isprintable() and len(text) <= 40 else f"{text!r:.40}"


def _became(a: Any, b: Any) -> str:
    before, after = _word(a), _word(b)
    return f"{before} became {after}" if before != after else f"{a!r:.40} became {b!r:.40}"


def _keys(a: _Kind, b: _Kind) -> list[str]:
    return list(dict.fromkeys((*a.config, *b.config)))


def _changes(wanted: _Kind | None, ours: _Kind | None) -> Iterator[str]:
    """How one configuration differs from another, in words."""
    if wanted is None or ours is None:
        yield from () if wanted is None else (f"{wanted.label} is left out",)
        yield from () if ours is None else (f"{ours.label} is added",)
    elif wanted.name != ours.name:
        yield f"{wanted.label} became {ours.label}"
    else:
        for key in _keys(wanted, ours):
            a, b = wanted.config.get(key), ours.config.get(key)
            if _gap(a, b):
                yield f"{wanted.name} {key} {_became(a, b)}"


def _settings_changes(pairs: Iterable[tuple[str, Settings | None, Settings | None]]) -> Iterator[str]:
    """How learning rates and weight decays differ, in words: one line for each change, whatever it is of."""
    found: dict[tuple[str, float, float], list[str]] = {}
    for name, wanted, ours in pairs:
        for what, a, b in zip(("learning rate", "weight decay"), wanted or (), ours or (), strict=False):
            if a != b:
                found.setdefault((what, a, b), []).append(name)
    for (what, a, b), names in found.items():
        yield f"{what} of {', '.join(dict.fromkeys(names))} {_became(a, b)}"


def points_from(
    sources: Sequence[str | Path], bound: BoundSpace, *, runs: str | Path = "runs", top: int = 5
) -> tuple[list[dict[str, Any]], list[str]]:
    """Points of a space that stand for what other searches found, best first, each recipe once.

    Args:
        sources: runs (a path, a name under `runs`, `latest`), recipe files, folders with a `recipe.yaml`, and
            names of built-in recipes. A run gives its winner, then by turns its best finished trials and the
            members of its front, the best first: at most `top` different recipes.

    Returns:
        The points, and one line for each source that was not taken over exactly. A recipe that has nothing in
        common with the space gives a line and no point.

    Raises:
        UsageError: a source is unknown or cannot be read, a run has no finished trial, or nothing of a source
            fits the backbone.
    """
    if top < 1:
        raise UsageError(f"At least one recipe is taken of each run, but got top={top}.")
    points: dict[str, dict[str, Any]] = {}
    notices: list[str] = []
    for source in sources:
        found = _open(source, runs)
        recipes, notes = ([found], []) if isinstance(found, Recipe) else _best_of(found, top)
        label = str(source) if isinstance(found, Recipe) else found.name
        matches: list[Match] = []
        for recipe in recipes:
            try:
                matches.append(values_of(recipe, bound))
            except RecipeError as error:
                notes.append(str(error))
        notes = list(dict.fromkeys(notes))
        if not matches:
            raise UsageError(f"Nothing can be taken from {label!r}: {'; '.join(notes)}")
        for match in matches:
            if match.overlap > 0:
                recipe = bound.materialize(match.values)
                points.setdefault(build_graph(recipe, bound.spec).trial_hash(), match.values)
        notes = [*_notes(matches, bound.name), *notes]
        if notes:
            notices.append(f"{label}: {'; '.join(notes)}")
    return list(points.values()), notices


def _notes(matches: Sequence[Match], space: str) -> list[str]:
    """What was not taken over exactly, in words."""
    inexact = [m for m in matches if not m.exact and m.overlap > 0]
    foreign = sum(m.overlap <= 0 for m in matches)
    notes = []

    def some(n: int, one: str, several: str) -> str:
        return (
            f"it {one}"
            if len(matches) == 1
            else f"{n} of {len(matches)} recipes {one if n == 1 else several}"
        )

    if inexact:
        changes = list(dict.fromkeys(chain.from_iterable(m.missing for m in inexact)))
        more = [f"and {len(changes) - _SHOWN} more"] if len(changes) > _SHOWN else []
        told = "; ".join(changes[:_SHOWN] + more)
        verb = some(len(inexact), "is", "are")
        notes.append(f"{verb} not in space {space!r} as it stands, the nearest member is taken: {told}")
    if foreign:
        verb = some(foreign, "is", "are")
        notes.append(f"{verb} left out, with nothing in common with space {space!r}")
    return notes


def _open(source: str | Path, runs: str | Path) -> RunFolder | Recipe:
    """The run or the recipe that a source means."""
    text, path = str(source), Path(source).expanduser()
    if text in recipe_names():
        return Recipe.named(text)
    if path.is_file():
        return Recipe.from_file(path)
    if (path / "manifest.json").is_file():
        return load_run(path)
    if (path / "recipe.yaml").is_file():
        return Recipe.from_file(path / "recipe.yaml")
    names = [run.name for run in list_runs(runs)]
    if text == "latest" or any(text in name for name in names):
        return load_run(text, root=runs)
    beside = [p.name for p in path.parent.iterdir()] if len(path.parts) > 1 and path.parent.is_dir() else []
    hint = near(text, (*names, *recipe_names(), "latest")) or near(path.name, beside)
    newest = f" Newest run: {names[0]}." if names else ""
    raise UsageError(
        f"{text!r} is neither a run (a folder, or a name under {str(runs)!r}) nor a recipe (a file, or "
        f"{', '.join(recipe_names())}).{hint or newest}"
    )


def _best_of(run: RunFolder, top: int) -> tuple[list[Recipe], list[str]]:
    """The winner of a run, then by turns its best trials and its front from the top: at most `top` different
    recipes; and what could not be read.

    Raises:
        UsageError: the run has neither a winner nor a finished trial.
    """
    records, lines, notes = _finished(run)
    winner = run.path / "recipe.yaml"
    if not records and not winner.is_file():
        raise UsageError(
            f"Run {run.name!r} has no finished trial to start from; let it finish one, or name another run."
            + "".join(f" ({note})" for note in notes)
        )
    best = sorted(records, key=_rank)
    front = reversed(pareto_front(r for r in records if r.counts is not None))
    turns = zip_longest((r.hash for r in best), (point.hash for point in front))
    order = dict.fromkeys(key for turn in turns for key in turn if key is not None)
    found: dict[str, Recipe] = {}
    if winner.is_file():
        try:
            recipe = Recipe.from_file(winner)
            found[recipe.hash()] = recipe
        except UsageError as error:
            notes.append(f"its recipe.yaml cannot be read ({str(error).splitlines()[0]:.200})")
    invalid = 0
    for key in order:
        if len(found) >= top or invalid >= _MAX_INVALID:
            break
        try:
            recipe = _recipe_in(lines[key])
            found.setdefault(recipe.hash(), recipe)
        except (UsageError, ValueError):
            invalid += 1
    return list(found.values()), notes + _counted(invalid, "trial has", "trials have", "no valid recipe")


def _rank(record: TrialRecord) -> tuple[float, float, str]:
    """Sorts the best trials first: of equal scores the smaller, then the earlier one."""
    return -(record.score or 0.0), (record.counts or {}).get("deployed", math.inf), record.hash


def _recipe_in(line: bytes) -> Recipe:
    """The recipe of a trial's line, by the reader of recipe files, which bounds nesting."""
    text = json.dumps(json.loads(line)["recipe"])
    if len(text) > _MAX_RECIPE:
        raise RecipeError(f"A trial's recipe has {len(text)} characters; at most {_MAX_RECIPE} are read.")
    return Recipe.from_yaml(text, "a trial's recipe")


def _finished(run: RunFolder) -> tuple[list[TrialRecord], dict[str, bytes], list[str]]:
    """The trials of a run that were trained in full, without their recipes; their lines, by the records'
    hash; and what could not be read. However large the file is, what is held is bounded.

    Raises:
        UsageError: the file cannot be read.
    """
    records: list[TrialRecord] = []
    lines: dict[str, bytes] = {}
    damaged = size = 0
    path = run.path / "trials.jsonl"
    try:
        with path.open("rb") as file:
            while size <= _MAX_FILE and (line := file.readline(_MAX_LINE)):
                size += len(line)
                try:
                    record = _record(json.loads(line), f"{len(records):09}")
                except (ValueError, RecursionError):
                    damaged += 1
                    continue
                if record is not None:
                    records.append(record)
                    lines[record.hash] = line
    except FileNotFoundError:
        # A run that has only just begun.
        return records, lines, []
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}.") from error
    notes = _counted(damaged, "line", "lines", "of its trials.jsonl could not be read")
    return (
        records,
        lines,
        notes + ["its trials.jsonl is too large to be read to the end"] * (size > _MAX_FILE),
    )


def _counted(n: int, one: str, several: str, rest: str) -> list[str]:
    return [f"{n} {one if n == 1 else several} {rest}"] if n else []


def _record(tree: Any, key: str) -> TrialRecord | None:
    """A trial that was trained in full, `None` for another.

    Raises:
        ValueError: it is no record of a trial.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("state"), str):
        raise ValueError("no record of a trial")
    if tree["state"] != "complete" or tree.get("kind", "trial") != "trial":
        return None
    counts = tree.get("counts")
    deployed = _finite(counts.get("deployed")) if isinstance(counts, dict) else None
    score = _finite(tree.get("score"))
    if score is None or not isinstance(tree.get("recipe"), dict):
        raise ValueError("no score or no recipe")
    table: CountTable | None = None if deployed is None else {"deployed": deployed, "share": 0.0}
    return TrialRecord("trial", key, "complete", {}, hash=key, counts=table, score=score)


def _finite(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if number else None

"""Recipes as bags of *placements*, and how alike they are.

A placement is an entry or a composition at one of its sites, with its configuration, learning rate and weight
decay. The distance of two recipes is a soft Sørensen–Dice distance of their placements. `Encoder` makes bags
of the members of a space, and of any recipe as far as it fits the backbone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

from autopeft.errors import RecipeError, UsageError
from autopeft.graph import WHOLE, Memo, parts_of
from autopeft.quantity import parse_quantity
from autopeft.recipe import (
    CompositionItem,
    EntryItem,
    InputItem,
    Item,
    LayerBlock,
    Recipe,
    TrainingSection,
    address_of,
    resolve_layers,
)
from autopeft.recipe.parse import read_training
from autopeft.recipe.problems import Problems
from autopeft.search.space.bound import BoundSpace, Unit, key_of
from autopeft.search.space.templates import size_field, slots_of
from autopeft.spec import BackboneSpec

__all__ = [
    "Component",
    "Encoder",
    "Overlap",
    "Piece",
    "Placement",
    "PlacementBag",
    "RecipeDistance",
    "Settings",
    "Training",
    "as_number",
]

_ENTRIES = 1000
_DEEPEST = 10_000
_KINDS, _PIECES, _TRAININGS = 1 << 12, 1 << 14, 1 << 8
_MEMO = 1 << 12
_DIGITS = 12  # of a hash, where it is compared and shown

# Shares of the distance. A placement counts more than any of its settings, and those more than the grouping.
_SIZE, _OTHER, _MOST_OTHER = 0.5, 0.1, 0.4
_RELATIVE, _INSIDE = 0.2, 0.9
_SETTINGS = 0.25
_TRAINING = 0.02
_GROUPING = 1e-5
_LEAST = 1e-6  # between numbers that differ, however little
_PAIRS = 64  # placements and pairs of them that count as one more evaluation


class Settings(NamedTuple):
    """Learning rate and weight decay, and those of the parts that have a group of their own, by name."""

    rate: float
    decay: float
    parts: tuple[tuple[str, float, float], ...] = ()

    def of(self, part: str) -> tuple[float, float]:
        """Of a part, or of the whole where it has no group of its own."""
        return next(((rate, decay) for name, rate, decay in self.parts if name == part), self[:2])

    def numbers(self) -> Iterator[float]:
        """All rates and decays."""
        yield from self[:2]
        yield from (value for _, *values in self.parts for value in values)


@dataclass(frozen=True, eq=False)
class Component:
    """A method or a composition, its configuration, and the compositions around it."""

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


class Placement(NamedTuple):
    """A kind at some sites (a set of bits), under a name if it has one of its own, and whether it trains."""

    kind: Component
    sites: int
    name: str | None
    trains: bool


@dataclass(frozen=True, eq=False)
class Piece:
    """An item at its layers: its placements, and its canonical structure."""

    placements: tuple[Placement, ...]
    text: str


Settled = tuple[tuple[Component, Settings | None], int]
"""A kind with its settings, at some sites."""


class Training:
    """A training section; groups of a space (`numbered`) also hold for aliases with a layer's number."""

    def __init__(self, section: TrainingSection, *, numbered: bool) -> None:
        self._section, self._numbered = section, numbered
        self._settled: Memo[Piece, list[Settled]] = Memo(_MEMO)
        outside = ("learning_rate", "weight_decay", "optimizer")
        # Each number on its own: `optimizer.betas.1`.
        self.optimizer: dict[str, Any] = {}
        for key, value in section.optimizer.model_dump(mode="json").items():
            if isinstance(value, list):
                self.optimizer |= {f"optimizer.{key}.{i}": v for i, v in enumerate(value)}
            else:
                self.optimizer[f"optimizer.{key}"] = value
        self.shared = Component("training", {**section.canonical(without=outside), **self.optimizer})
        self.policies = [
            Component(p.method, p.method_config().model_dump(mode="json")) for p in section.policies
        ]
        self.head = self._of("head", "head")

    def _of(self, name: str, method: str) -> Settings:
        """The settings of an entry."""
        section, (base, _, number) = self._section, name.rpartition("_")
        plain = (base,) if self._numbered and number.isdigit() else ()
        names = (name, *plain, method)
        parts = [(part, *section.settings(*names, part=part)) for part in sorted(section.parts(*names))]
        return Settings(*section.settings(*names), tuple(parts))

    def settle(self, piece: Piece) -> list[Settled]:
        """The placements of a piece with their settings."""
        found = self._settled.get(piece)
        if found is None:
            # A space names no entry by its position (`lora_2`); the entries of a recipe carry their names.
            found = [
                ((kind, self._of(name or kind.name, kind.name) if trains else None), sites)
                for kind, sites, name, trains in piece.placements
            ]
            self._settled.keep(piece, found)
        return found


class PlacementBag:
    """A recipe as placements: those of one kind and the same settings together."""

    def __init__(self, pieces: Sequence[Piece], training: Training) -> None:
        merged: dict[tuple[Component, Settings | None], int] = {}
        self.placements: list[tuple[Component, Settings | None, int]] = []
        for piece in pieces:
            for key, sites in training.settle(piece):
                before = merged.get(key, 0)
                twice = before & sites
                if twice:
                    self.placements.append((*key, twice))
                merged[key] = before | sites
        self.placements += [(*key, sites) for key, sites in merged.items()]
        self.training = training
        self.texts = frozenset([piece.text for piece in pieces])
        self.size = sum([sites.bit_count() for _, _, sites in self.placements])

    @cached_property
    def families(self) -> dict[str, list[tuple[int, Component, Settings | None, int]]]:
        """Cells with their positions, by the family of their kinds."""
        found: dict[str, list[tuple[int, Component, Settings | None, int]]] = {}
        for j, placement in enumerate(self.placements):
            found.setdefault(placement[0].family, []).append((j, *placement))
        return found


class Overlap(NamedTuple):
    """Which placements go together: (likeness, ours, wanted, sites), and the sites that are left of each."""

    common: float
    pairs: list[tuple[float, int, int, int]]
    ours: list[int]
    wanted: list[int]
    compared: int


class RecipeDistance:
    """How alike recipes on a backbone are."""

    def __init__(self, spec: BackboneSpec) -> None:
        self._spec = spec
        self._alike: Memo[tuple[Component, Component], float] = Memo(_MEMO)

    def overlap(self, ours: PlacementBag, wanted: PlacementBag) -> Overlap:
        """Match placements site by site, the most alike first."""
        pairs, compared, families = [], 0, wanted.families
        for i, (kind, settings, sites) in enumerate(ours.placements):
            relatives = families.get(kind.family, ())
            compared += len(relatives)
            for j, other, others, there in relatives:
                if sites & there:
                    alike = 1.0 if kind is other else self._likeness(kind, other)
                    if settings != others:
                        alike *= 1 - _SETTINGS * _settings_gap(settings, others)
                    pairs.append((-alike, i, j))
        pairs.sort()
        left, rest = [c[2] for c in ours.placements], [c[2] for c in wanted.placements]
        found, common = [], 0.0
        for alike, i, j in pairs:
            both = left[i] & rest[j]
            if both:
                left[i] ^= both
                rest[j] ^= both
                common -= alike * both.bit_count()
                found.append((-alike, i, j, both))
        return Overlap(common, found, left, rest, compared)

    def _likeness(self, a: Component, b: Component) -> float:
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

    def distance(self, ours: PlacementBag, wanted: PlacementBag) -> tuple[float, int]:
        """The distance of two recipes, and how many steps it took.

        It is a soft Sørensen–Dice distance of the placements: a share of both recipes, so that descent never
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
        steps = 1 + (len(ours.placements) + overlap.compared) // _PAIRS
        return max(0.0, apart) + _TRAINING * training + _GROUPING * groups, steps

    def differences(self, ours: PlacementBag, wanted: PlacementBag) -> Iterator[str]:
        """The differences of `ours` from `wanted`, in words."""
        overlap = self.overlap(ours, wanted)
        for left, bag, fate in ((overlap.wanted, wanted, "is left out"), (overlap.ours, ours, "is added")):
            together: dict[Component, int] = {}
            for sites, (kind, _, _) in zip(left, bag.placements, strict=True):
                together[kind] = together.get(kind, 0) | sites
            yield from (f"{k.label}{self._where(s)} {fate}" for k, s in together.items() if s)
        a, b = wanted.training, ours.training
        both = [(wanted.placements[j], ours.placements[i]) for _, i, j, _ in overlap.pairs]
        kinds = [(theirs[0], mine[0]) for theirs, mine in both]
        for p, q in (*kinds, (a.shared, b.shared), *zip_longest(a.policies, b.policies)):
            yield from _changes(p, q)
        settings = [(theirs[0].name, theirs[1], mine[1]) for theirs, mine in both]
        yield from _settings_changes((*settings, ("head", a.head, b.head)))

    def _where(self, sites: int) -> str:
        """Sites in words: ` at q, v in layers 0-3`."""
        places = [s for n, s in enumerate(self._spec.sites) if sites >> n & 1]
        names = dict.fromkeys(s.name for s in places)
        layers: dict[str, set[int]] = {}
        for s in places:
            layers.setdefault(s.stack, set()).update(() if s.layer is None else (s.layer,))
        several = len(self._spec.stacks) > 1
        parts = [f"{f'{n} ' if several else ''}layers {_spans(i)}" for n, i in layers.items() if i]
        return (f" at {', '.join(names)}" if names else "") + (f" in {' and '.join(parts)}" if parts else "")


class Encoder:
    """The members of a space, and any recipe on its backbone, as bags of placements.

    `bound.kept(Encoder)` is the one of a space.
    """

    def __init__(self, bound: BoundSpace) -> None:
        self.bound, self._parts = bound, parts_of(bound.spec)
        self.comparison = RecipeDistance(bound.spec)
        self._bits = {site.key: 1 << n for n, site in enumerate(bound.spec.sites)}
        self._nowhere = 1 << len(self._bits)
        self._kinds: Memo[str, Component] = Memo(_KINDS)
        self._trainings: Memo[Any, Training] = Memo(_TRAININGS)
        names = [slot.parameter(None) for slot in slots_of(bound.templates.training)]
        self._training_key = key_of(dict.fromkeys(names))
        held = max(64, _PIECES // max(1, len(bound.units)))
        self._units: list[tuple[Unit, Callable[[Any], Any], Memo[Any, tuple[Piece, ...]]]] = [
            (unit, key_of(dict.fromkeys((*unit.item_parameters, *unit.place_parameters))), Memo(held))
            for unit in bound.units
        ]

    def at(self, values: Mapping[str, Any]) -> PlacementBag:
        """The member with these values."""
        pieces: list[Piece] = []
        mask_of = self._parts.masks.mask
        for unit, key_in, known in self._units:
            key = key_in(values)
            found = known.get(key)
            if found is None:
                item, where = self.bound.item(unit, values), self.bound.where(unit, values)
                masks = [WHOLE] if where is None else [mask_of(at, stack) for at, stack in where]
                pieces_of = () if item is None else [self._piece(item, m, self.bound.inputs) for m in masks]
                found = known.keep(key, tuple(pieces_of))
            pieces.extend(found)
        key = self._training_key(values)
        training = self._trainings.get(key)
        if training is None:
            tree = {"training": self.bound.training(values)}
            section = read_training(tree, Problems(tree, "space"))
            training = self._trainings.keep(key, Training(section, numbered=True))
        return PlacementBag(pieces, training)

    def _piece(self, item: Item, mask: int, inputs: Mapping[str, InputItem]) -> Piece:
        placements: list[Placement] = []
        self._walk(item, mask, "", placements, inputs)
        return Piece(tuple(placements), self._parts.shape(item).text(mask))

    def _walk(
        self,
        item: Item,
        mask: int,
        inside: str,
        placements: list[Placement],
        inputs: Mapping[str, InputItem],
    ) -> int:
        """Add the placements of an item; returns the sites that they cover."""
        if isinstance(item, EntryItem):
            shape = self._parts.leaf(item, item.method)
            sites = sum(self._bits[s.key] for s in shape.sites(mask))
            config = shape.config.model_dump(mode="json", exclude={"sites"})
            if item.start:  # by content: the same input may have another name in another recipe
                told = {"method", "config", "alias", "start"}
                config |= item.model_dump(mode="json", exclude=told, exclude_defaults=True)
                config["from"] = " and ".join(_content(start, inputs) for start in item.start)
            kind = self._kind(item.method, config, size_field(shape.method), inside)
            at = sites if shape.placed(mask) else self._nowhere
            placements.append(Placement(kind, at, item.alias, not item.frozen))
            return sites
        sites = 0
        for child in item.children:
            sites |= self._walk(child, mask, f"{inside}/{item.kind}", placements, inputs)
        kind = self._kind(item.kind, dict(item.options), None, inside)
        shape_of = self._parts.shape
        try:  # it trains where it has parameters of its own
            below = sum(shape_of(child).count(mask)[1] for child in item.children)
            trains = shape_of(item).count(mask)[1] > below
        except UsageError:  # the children cannot act together, which whoever takes the point checks
            trains = False
        placements.append(Placement(kind, sites, item.alias, trains))
        return sites

    def _kind(self, name: str, config: Mapping[str, Any], size: str | None, inside: str) -> Component:
        key = json.dumps([name, inside, config], sort_keys=True)
        found = self._kinds.get(key)
        return self._kinds.keep(key, Component(name, config, size, inside)) if found is None else found

    def read(self, recipe: Recipe) -> tuple[PlacementBag, list[str]]:
        """A recipe as far as it fits the backbone, and in words the rest."""
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
                pieces += [] if fitting is None else [self._piece(fitting, mask, recipe.inputs)]
        for item in recipe.model:
            fitting = self._fitting(item, names, WHOLE, lost)
            pieces += [] if fitting is None else [self._piece(fitting, WHOLE, recipe.inputs)]
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
                asked = block.at if isinstance(block.at, str) else _spans(block.at)
                rest = f"only {_spans(layers)}" if layers else "none"
                lost.append(f"{what} in layers {asked}: {rest} exist in this {stack.name} of {stack.layers}")
        if not stacks:
            lost.append(f"{what} is left out, since there is no {block.stack}")
        return mask

    def _fitting(self, item: Item, names: Iterator[str], mask: int, lost: list[str]) -> Item | None:
        """The part of an item that fits the backbone, its entries under their names; `None` for none."""
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


def _content(start: str, inputs: Mapping[str, InputItem]) -> str:
    """What a `from:` means: the hash of the input's content in short, and the entry of it that is named."""
    name, entry = address_of(start)
    content = (inputs[name].sha256 or name)[:_DIGITS]
    return content if entry is None else f"{content}.{entry}"


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


def as_number(value: Any) -> float | None:
    """A finite number, or that of a quantity such as `0.1%`; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(parse_quantity(value).value if isinstance(value, str) else value)
    except (UsageError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _gap(a: Any, b: Any) -> float:
    """From 0 for equal values to 1; of numbers the difference relative to the larger."""
    if a == b and isinstance(a, bool) == isinstance(b, bool):
        return 0.0
    x, y = as_number(a), as_number(b)
    if x is None or y is None:
        return 1.0
    return min(1.0, max(_LEAST, abs(x - y) / (max(abs(x), abs(y)) or 1.0)))


def _settings_gap(a: Settings | None, b: Settings | None) -> float:
    """From 0 for the same to less than 1, by the ratio of the learning rates and the weight decays."""
    if a is None or b is None or a == b:
        return 0.0
    named = sorted({part for part, *_ in (*a.parts, *b.parts)})
    gaps = [_rate_gap(a[:2], b[:2]), *(_rate_gap(a.of(part), b.of(part)) for part in named)]
    return max(_LEAST, sum(gaps) / len(gaps))


def _rate_gap(a: tuple[float, float], b: tuple[float, float]) -> float:
    ratio = abs(math.log(a[0]) - math.log(b[0]))
    return 0.8 * ratio / (1 + ratio) + 0.2 * _gap(a[1], b[1])


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


def _keys(a: Component, b: Component) -> list[str]:
    return list(dict.fromkeys((*a.config, *b.config)))


def _changes(wanted: Component | None, ours: Component | None) -> Iterator[str]:
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
        if wanted is None or ours is None:
            continue
        whole = [(name, wanted[:2], ours[:2])]
        named = sorted({part for part, *_ in (*wanted.parts, *ours.parts)})
        for place, theirs, mine in (*whole, *((f"{name}.{p}", wanted.of(p), ours.of(p)) for p in named)):
            for what, a, b in zip(("learning rate", "weight decay"), theirs, mine, strict=True):
                if a != b:
                    found.setdefault((what, a, b), []).append(place)
    for (what, a, b), names in found.items():
        yield f"{what} of {', '.join(dict.fromkeys(names))} {_became(a, b)}"

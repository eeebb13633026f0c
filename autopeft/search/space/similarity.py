"""Recipes as bags of *placements*, and how alike they are.

A placement is an entry or a composition at one of its sites, with its configuration, learning rate and weight
decay. The distance of two recipes is a soft Sørensen–Dice distance of their placements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

from autopeft.errors import UsageError
from autopeft.graph import Memo
from autopeft.quantity import parse_quantity
from autopeft.recipe import Settings, TrainingSection
from autopeft.spec import BackboneSpec

__all__ = [
    "Component",
    "Overlap",
    "Piece",
    "Placement",
    "PlacementBag",
    "RecipeDistance",
    "Training",
    "as_number",
    "spans",
]

_MEMO = 1 << 12

# Shares of the distance. A placement counts more than any of its settings, and those more than the grouping.
_SIZE, _OTHER, _MOST_OTHER = 0.5, 0.1, 0.4
_RELATIVE, _INSIDE = 0.2, 0.9
_SETTINGS = 0.25
_TRAINING = 0.02
_GROUPING = 1e-5
_LEAST = 1e-6  # between numbers that differ, however little
_PAIRS = 64  # placements and pairs of them that count as one more evaluation


@dataclass(frozen=True, eq=False)
class Component:
    """What is placed: a method or a composition, its configuration, and the compositions around it."""

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
        outside = {"learning_rate", "weight_decay", "groups", "policies"}
        self.shared = Component("training", section.model_dump(mode="json", exclude=outside))
        self.policies = [
            Component(p.method, p.method_config().model_dump(mode="json")) for p in section.policies
        ]
        self.head = self._of("head", "head")

    def _of(self, name: str, method: str) -> Settings:
        """The settings of an entry."""
        base, _, number = name.rpartition("_")
        plain = (base,) if self._numbered and number.isdigit() else ()
        return self._section.settings_of(name, *plain, method)

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
        """What of `wanted` is not in `ours`, in words."""
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
        parts = [f"{f'{n} ' if several else ''}layers {spans(i)}" for n, i in layers.items() if i]
        return (f" at {', '.join(names)}" if names else "") + (f" in {' and '.join(parts)}" if parts else "")


def as_number(value: Any) -> float | None:
    """A finite number, or what a quantity such as `0.1%` amounts to."""
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
    ratio = abs(math.log(a[0]) - math.log(b[0]))
    return max(_LEAST, 0.8 * ratio / (1 + ratio) + 0.2 * _gap(a[1], b[1]))


def spans(indices: Iterable[int]) -> str:
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
        for what, a, b in zip(("learning rate", "weight decay"), wanted or (), ours or (), strict=False):
            if a != b:
                found.setdefault((what, a, b), []).append(name)
    for (what, a, b), names in found.items():
        yield f"{what} of {', '.join(dict.fromkeys(names))} {_became(a, b)}"

"""From a recipe to the point of a space: the inverse of `BoundSpace.materialize`, by descent on a distance.

It knows no names, so it works on any space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, product
from typing import Any

from autopeft.errors import RecipeError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooled, unpooled
from autopeft.search.space.bound import BoundSpace, Unit
from autopeft.search.space.counting import PointCounter
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.repair import smallest
from autopeft.search.space.similarity import Encoder, PlacementBag, as_number
from autopeft.search.space.templates import Const, Mapped, Node, Ref, Scaled

__all__ = ["Match", "values_of"]

_EVALUATIONS = 20_000
_STARTS = 8
_NUMBERS = 64
_WHOLE_RANGE = 256
_VARIANTS = 1024
_STEPS = 32
_SAME = 1e-12


@dataclass(frozen=True)
class Match:
    """A point of a space for a recipe.

    Attributes:
        values: one value for each parameter of the space.
        exact: whether the point's recipe is the given one (equal `trial_hash`).
        distance: from the recipe to the point's: 0 where `exact`, near 1 where they have little in common.
        missing: what differs, in words; empty where `exact`.
        overlap: share of the placements that the two have in common, from 0 to 1; placements that are alike
            count in part.
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

    Entries that start from an input are matched with items that start from the same content.

    Raises:
        RecipeError: nothing of the recipe fits the backbone, it has too many entries, or the hash of an
            input's content is not known.
        EmptyRecipe: this backbone can take nothing that the space offers.
    """
    recipe.starts()  # raises where what they are is not settled
    members = bound.kept(Encoder)
    if bound.pooling != "own":  # which all its recipes have
        recipe = unpooled(recipe)
    wanted, lost = members.read(recipe)
    if not wanted.size:
        why = "; ".join(lost) or "it has no entries"
        raise RecipeError(
            f"Recipe {recipe.name!r} has nothing that this {bound.spec.family} can take: {why}."
        )
    values, distance = _Descent(members, wanted).nearest()
    whole = pooled(recipe, bound.pooling)
    if not bound.deep_head:
        whole = whole.model_copy(update={"training": whole.training.without_head_parts()})
    try:
        hashes = {build_graph(r, bound.spec).trial_hash() for r in (whole, bound.materialize(values))}
    except UsageError:
        # The recipe as it stands does not fit the backbone; the point's does.
        hashes = set()
    if len(hashes) == 1:
        return Match(values, exact=True, distance=0.0, missing=[])
    ours = members.at(values)
    missing = list(dict.fromkeys((*lost, *members.comparison.differences(ours, wanted))))
    missing = missing or ["the same methods at the same sites, as other entries"]
    overlap = 2 * members.comparison.overlap(ours, wanted).common / (ours.size + wanted.size)
    return Match(values, False, distance, missing, overlap)


class _Descent:
    """From several starts to the member nearest to `wanted`: along single parameters, items, then pairs."""

    def __init__(self, members: Encoder, wanted: PlacementBag) -> None:
        self._encoder, self._wanted, self._bound = members, wanted, members.bound
        self._counter = self._bound.kept(PointCounter)
        self._remaining = _EVALUATIONS
        self._known: dict[int, list[dict[str, Any]]] = {}
        training = self._bound.templates.training
        varies = isinstance(training, Mapped) and "optimizer" in training.nodes
        numbers = sorted(set(_numbers(wanted, varies)))[:_NUMBERS]
        factors = _factors(training)
        found = {
            p.name: _candidates(p, [*numbers, *_divided(numbers, factors.get(p.name, []))])
            for p in self._bound.parameters
        }
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
            if (best is not None and best[1] <= _SAME) or self._remaining < _EVALUATIONS // 2:
                break
        if best is None:
            values = dict(smallest(self._bound).values)
            best = values, self._distance(values)
        return self._in_pairs(*best)

    def _starts(self) -> Iterator[dict[str, Any]]:
        first, *others = starting_points(self._bound, _STARTS)
        yield first
        # All layers, and nearly nothing there: what decides on items, the last first, at what leaves the
        # fewest placements. From here methods are added one at a time.
        values = dict(first)
        items = {name for unit in self._bound.units for name in unit.item_parameters}
        for name in reversed([name for name in self._choices if name in items]):
            choices = self._choices[name]
            sizes = [self._encoder.at({**values, name: choice}).size for choice in choices]
            values[name] = choices[sizes.index(min(sizes))]
            self._remaining -= len(choices)
        yield values
        yield from others
        yield self._bound.middle()

    def _distance(self, values: Mapping[str, Any]) -> float:
        ours = self._encoder.at(values)
        distance, steps = self._encoder.comparison.distance(ours, self._wanted)
        self._remaining -= steps
        return distance

    def _holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the point is a valid recipe: not empty, with methods that can act together."""
        try:
            self._counter.count(values)
        except UsageError:
            return False
        return True

    def _settle(self, start: Mapping[str, Any]) -> tuple[dict[str, Any], float] | None:
        """The end of a descent, `None` where it is no valid recipe."""
        # Most points are valid, so that each is checked only where the end of a first descent is not.
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
        while moving and self._remaining > 0 and distance > _SAME:
            single = ([{name: choice} for choice in choices] for name, choices in self._choices.items())
            whole = (self._items_of(unit, values) for unit in self._bound.units)
            for neighbours in (single, whole):
                moving = False
                for moves in neighbours:
                    if self._remaining <= 0:
                        return values, distance
                    step = self._best_move(moves, values, distance, careful)
                    if step is not None:
                        distance, moving = step[0], True
                        values.update(step[1])
                if moving:
                    break
        return values, distance

    def _best_move(
        self, moves: Iterable[dict[str, Any]], values: Mapping[str, Any], distance: float, careful: bool
    ) -> tuple[float, dict[str, Any]] | None:
        """The move that leads nearest, where that is nearer than now."""
        reached = ((self._distance({**values, **move}), i, move) for i, move in enumerate(moves))
        found = sorted(r for r in reached if r[0] < distance - _SAME)
        if careful and self._holds(values):
            found = [next(r for r in (*found, (distance, -1, {})) if self._holds({**values, **r[2]}))]
        return (found[0][0], found[0][2]) if found and found[0][1] >= 0 else None

    def _items_of(self, unit: Unit, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Values for each different item of a unit; none where there are too many."""
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
        """Descent along pairs of parameters where single ones lead no further: pairs that decide on one item
        come first."""
        items = [set(unit.item_parameters) for unit in self._bound.units]
        places = [{*unit.item_parameters, *unit.place_parameters} for unit in self._bound.units]
        pairs = dict.fromkeys(
            pair
            for names in (*items, *places, set(self._choices))
            for pair in combinations([name for name in self._choices if name in names], 2)
        )
        moving = True
        while moving and distance > _SAME:
            moving = False
            for p, q in pairs:
                for a in self._choices[p]:
                    for b in self._choices[q]:
                        if self._remaining <= 0:
                            return values, distance
                        there = {**values, p: a, q: b}
                        if self._distance(there) < distance - _SAME:
                            found = self._settle(there)
                            if found is not None:
                                (values, distance), moving = found, True
        return values, distance


def _factors(node: Node) -> dict[str, list[float]]:
    """For each parameter, by name, the factors by which `scaled` may have multiplied its number."""
    every: dict[str, list[float]] = {}
    for inner in node.nodes.values() if isinstance(node, Mapped) else ():
        if isinstance(inner, Scaled) and isinstance(inner.number, Ref) and isinstance(inner.size, Ref):
            sizes = (o.value for o in inner.size.slot.options.values() if isinstance(o, Const))
            found = {inner.number.slot.parameter(None): [1.0, *map(inner.factor, sizes)]}
        else:
            found = _factors(inner)
        for name, factors in found.items():
            every[name] = sorted({*every.get(name, ()), *factors})
    return every


def _divided(numbers: Sequence[float], factors: Sequence[float]) -> list[float]:
    """The numbers before they were multiplied by a factor and rounded.

    One number may have become several. Rounding leaves an interval for each; where intervals overlap, the
    middle of the overlap is tried.
    """
    ends: list[tuple[float, int]] = []
    for x in numbers:
        half = 0.5 * 10.0 ** (math.floor(math.log10(x)) + 1 - Scaled.DIGITS) if x > 0 else 0.0
        ends += [((x + side * half) / f, side) for f in factors for side in (-1, 1)]
    ends.sort()
    return [(a + b) / 2 for (a, begins), (b, stops) in pairwise(ends) if begins < 0 < stops]


def _candidates(p: Parameter, numbers: Sequence[float]) -> list[Any]:
    """The values of a parameter to try: all choices, and for a wide range the recipe's own numbers."""
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


def _numbers(bag: PlacementBag, optimizer: bool) -> Iterator[float]:
    """Every number in a recipe's training section and configurations; those of `optimizer` only where the
    space varies them."""
    training = bag.training
    for kind in chain((c[0] for c in bag.placements), (training.shared, *training.policies)):
        for key, value in kind.config.items():
            number = as_number(value)
            apart = kind is training.shared and key in training.optimizer
            if number is not None and (optimizer or not apart):
                yield number
    for settings in (training.head, *(c[1] for c in bag.placements)):
        yield from () if settings is None else settings.numbers()

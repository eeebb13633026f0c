"""Repair into limits on what a recipe takes of the machine, beside the parameter budget.

A point that is over a limit moves by one parameter at a time. Where single changes bring it inside, the one
that keeps most parameters is taken; else the one that takes off most of the excess. What a point takes is
predicted from its graph, so this works on any space and any limit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.counting import Budget
from autopeft.errors import AutoPEFTError
from autopeft.graph import (
    CompositionGraph,
    Memo,
    build_graph,
    on_packed,
    on_packed_entries,
    on_sharded,
    on_sharded_entries,
    unservable_entries,
)
from autopeft.quantity import parse_quantity
from autopeft.recipe import Recipe
from autopeft.resources import Limits, Resources
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.expressions import Mapped
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.repair import (
    Infeasible,
    Repaired,
    balance_of,
    feasible_share,
    repair,
)
from autopeft.search.space.servable import servable, without
from autopeft.spec import BackboneSpec

__all__ = ["ResourceBudget", "check_within", "keeps_within", "repair_within", "share_within"]

_KEPT = 1 << 12
_MOVES = 24
_NUMBER = 4  # bytes of a parameter in a file
_NARROWINGS = 8
_BUDGETS = 4

Values = Mapping[str, Any]


@dataclass(frozen=True)
class ResourceBudget(Budget):
    """A parameter budget, and limits on what else a recipe takes.

    Attributes:
        within: the limits.
        predict: what a graph takes.
    """

    within: Limits = field(default_factory=Limits)
    predict: Callable[[CompositionGraph], Resources] = field(
        default=lambda graph: Resources(), repr=False, compare=False
    )

    @classmethod
    def of(
        cls, budget: Budget, within: Limits, predict: Callable[[CompositionGraph], Resources]
    ) -> ResourceBudget:
        """A parameter budget with these limits."""
        return cls(budget.upper, budget.lower, within, predict)


def repair_within(space: BoundSpace, values: Values, budget: Budget) -> Repaired:
    """Move `values` into the budget and, where it has some, into its limits. The same input always gives the
    same output.

    Raises:
        Infeasible: no member of the space that repair can reach lies inside.
        RecipeError: a value is missing, unknown or not allowed.
    """
    if not isinstance(budget, ResourceBudget) or not budget.within:
        return repair(space, values, budget)
    space.check(values)
    walk = _walk_of(space, budget)
    inside = walk.inside(values)
    if inside is None:
        inside = walk.fallback()
    if inside is None:
        raise walk.infeasible()
    return replace(inside, changed=dict(inside.values) != dict(values))


class _Walk:
    """Moves points of a space into the limits of a budget, and remembers what points take."""

    def __init__(self, space: BoundSpace, budget: ResourceBudget) -> None:
        self.space, self.budget = space, budget
        self.balance = balance_of(space)
        self.least, self.most = budget.limits(space.spec)
        self._known: Memo[Any, float] = Memo(_KEPT)
        self._fallback: Repaired | None = None
        self._nearest: tuple[float, Resources] | None = None
        self._sought = False
        # What a training takes depends on nothing else of how it is trained.
        training = space.templates.training
        dropout = training.nodes.get("dropout") if isinstance(training, Mapped) else None
        slots = () if dropout is None else tuple(dropout.slots())
        self._dropout = dropout if slots else None
        self._varied = [slot.parameter(None) for slot in slots]

    def excess(self, values: Values) -> float:
        """How far a point is over the limits; infinite where it cannot be built."""
        dropout = self._dropout and self._dropout.fill(self.space.context(values, None))
        key = (dropout, *self.balance.structural(values).items())
        known = self._known.get(key)
        if known is None:
            known = self._known.keep(key, self._excess(values))
        return known

    def _excess(self, values: Values) -> float:
        try:
            graph = build_graph(self.space.materialize(values), self.space.spec)
        except AutoPEFTError:
            return math.inf
        found = self.budget.predict(graph)
        over = self.budget.within.excess(found)
        way = self.budget.within.serve
        if over and way is not None and found.unservable:
            over += unservable_entries(graph, way)
        if over and found.on_packed:
            over += on_packed_entries(graph)
        if over and found.on_sharded:
            over += on_sharded_entries(graph)
        if self._nearest is None or over < self._nearest[0]:
            self._nearest = over, found
        return over

    def inside(self, wanted: Values) -> Repaired | None:
        """The point, or one near it, inside all limits; `None` where single moves do not lead there."""
        way = self.budget.within.serve
        wanted = wanted if way is None else servable(self.space, self.balance, dict(wanted), way)
        if self.budget.within.quantize is not None:
            wanted = without(self.space, self.balance, dict(wanted), on_packed)
        if self.budget.within.processes > 1:
            wanted = without(self.space, self.balance, dict(wanted), on_sharded)
        start = repair(self.space, wanted, self.budget)
        values = dict(start.values)
        over = self.excess(values)
        if over == 0:
            return start
        values, over = self._smaller_file(values, over)
        for _ in range(_MOVES):
            if over == 0:
                return self._repaired(values)
            step = self._step(values, over) or self._detour(values, over)
            if step is None:
                return None
            values, over = step
        return None

    def _smaller_file(self, values: dict[str, Any], over: float) -> tuple[dict[str, Any], float]:
        """Fewer parameters where the file is too large: what repair does best."""
        limit, most = self.budget.within.file, self.most
        for _ in range(_NARROWINGS if limit is not None else 0):
            graph = build_graph(self.space.materialize(values), self.space.spec)
            size = self.budget.predict(graph).file or 0.0
            if limit is None or size <= limit:
                break
            held = graph.parameter_count().deployed
            most = min(most, held) - math.ceil((size - limit) / _NUMBER)
            if most < max(1, self.least):
                break
            try:
                narrower = Budget(parse_quantity(most), self.budget.lower)
                smaller = dict(repair(self.space, values, narrower).values)
            except Infeasible:
                break
            values, over = smaller, self.excess(smaller)
        return values, over

    def _step(self, values: dict[str, Any], over: float) -> tuple[dict[str, Any], float] | None:
        """The best single change; `None` where none helps."""
        best: tuple[tuple[bool, float], dict[str, Any], float] | None = None
        for moved, total in self._moves(values):
            reached = self.excess(moved)
            if reached >= over:
                continue
            rank = (reached == 0, float(total) if reached == 0 else over - reached)
            if best is None or rank > best[0]:
                best = rank, moved, reached
        return None if best is None else best[1:]

    def _detour(self, values: dict[str, Any], over: float) -> tuple[dict[str, Any], float] | None:
        """The first change that costs nothing and after which another helps: something has to be there before
        the last thing can leave."""
        for moved, _ in self._moves(values):
            if self.excess(moved) <= over and (step := self._step(moved, over)) is not None:
                return step
        return None

    def _moves(self, values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], int]]:
        """Every point that differs in one parameter and lies inside the parameter budget, with its total."""
        point = self.balance.at(values)
        for name in self.balance.choices:
            for value, total in self.balance.moves(name, point):
                if self.least <= total <= self.most:
                    yield {**values, name: value}, total
        for name in self._varied:
            for value in self.space.parameter(name).choices:
                if value != values[name]:
                    yield {**values, name: value}, point.total

    def _repaired(self, values: dict[str, Any]) -> Repaired:
        counts = self.balance.counter.count(values)
        return Repaired(dict(values), self.space.materialize(values), counts, changed=True)

    def fallback(self) -> Repaired | None:
        """The first point inside that is reached from the points where a search starts, or from the smallest
        member."""
        if not self._sought:
            self._sought = True
            smallest = dict(self.balance.smallest[0])
            for start in [*starting_points(self.space, len(self.space.units) + 1), smallest]:
                try:
                    self._fallback = self.inside(start)
                except Infeasible:
                    continue
                if self._fallback is not None:
                    break
        return self._fallback

    def infeasible(self) -> Infeasible:
        """What to say where nothing was found."""
        nearest = "" if self._nearest is None else "; ".join(self.budget.within.broken(self._nearest[1]))
        return Infeasible(
            f"No member of space {self.space.name!r} was found within the limits ({self.budget.within}) and "
            f"the budget {self.budget}. The nearest is not: {nearest or 'it is over the budget'}. Raise the "
            "limit, or take a space with smaller methods, later layers or methods that can be served so."
        )


class _Walks(Memo[int, _Walk]):
    """The walks of a space, by budget."""


def _walk_of(space: BoundSpace, budget: ResourceBudget) -> _Walk:
    walks = space.kept.setdefault(_Walks, _Walks(_BUDGETS))
    walk = walks.get(id(budget))
    if walk is None or walk.budget is not budget:
        walk = walks.keep(id(budget), _Walk(space, budget))
    assert isinstance(walk, _Walk)
    return walk


def check_within(space: BoundSpace, budget: Budget) -> None:
    """Check that some member of the space lies inside budget and limits.

    Raises:
        Infeasible: repair finds none; the message says how near it came.
    """
    if isinstance(budget, ResourceBudget) and budget.within:
        walk = _walk_of(space, budget)
        if walk.fallback() is None:
            raise walk.infeasible()


def keeps_within(recipe: Recipe, budget: Budget, spec: BackboneSpec) -> bool:
    """Whether a recipe, of a space or not, lies inside budget and limits, as far as its graph tells."""
    try:
        graph = build_graph(recipe, spec)
    except AutoPEFTError:
        return False
    least, most = budget.limits(spec)
    if not least <= graph.parameter_count().deployed <= most:
        return False
    return not isinstance(budget, ResourceBudget) or budget.within.excess(budget.predict(graph)) == 0


def share_within(space: BoundSpace, budget: Budget, *, n: int, seed: int) -> float:
    """Share of `n` random points that lie inside budget and limits without repair."""
    share = feasible_share(space, budget, n=n, seed=seed)
    if not isinstance(budget, ResourceBudget) or not budget.within or not share:
        return share
    walk, rng = _walk_of(space, budget), random.Random(seed)
    points = (walk.balance.at(space.sample(rng)) for _ in range(n))
    inside = [p for p in points if p.present and walk.least <= p.total <= walk.most]
    return sum(walk.excess(p.values) == 0 for p in inside) / n

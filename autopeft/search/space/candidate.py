"""Candidates: points of a space as recipes that can be trained, inside the parameter budget and the limits.

Limits bound memory, time or file size, or demand a way to be served. A point that is over a limit moves by
one parameter at a time. Where single changes bring it inside, the one that keeps most parameters is taken;
else the one that takes off most of the excess. The figures are predicted from a point's graph, so this works
on any space and any limit.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from autopeft.composition import get_composition
from autopeft.counting import Budget, Counts
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
from autopeft.method import get_method
from autopeft.quantity import parse_quantity
from autopeft.recipe import EntryItem, Item, Recipe
from autopeft.recipe.contents import name_from
from autopeft.recipe.models import validate_config
from autopeft.resources import Limits, Resources
from autopeft.search.space.bound import BoundSpace
from autopeft.search.space.initial_points import starting_points
from autopeft.search.space.repair import Balance, Infeasible, Repaired, feasible_share, repair
from autopeft.search.space.templates import Mapped, fill, slots_of
from autopeft.spec import BackboneSpec

__all__ = [
    "Candidate",
    "ResourceBudget",
    "candidate",
    "check_within",
    "keeps_within",
    "repair_within",
    "share_within",
]

_KEPT = 1 << 12
_MOVES = 24
_NUMBER = 4  # bytes of a parameter in a file
_NARROWINGS = 8

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A recipe inside the budget.

    Attributes:
        recipe: named after what is in it (`autopeft.recipe.contents.name_from`); the one recipe of a space
            without choices keeps the name that its file gives it.
        hash: equal for recipes that train the same, whatever they are called.
        point: the space's values after repair.
        step_cost: predicted time of a training step, as a multiple of that of LoRA of the same budget on all
            layers; `None` where it is not predicted.
    """

    recipe: Recipe
    counts: Counts
    hash: str
    point: Mapping[str, Any]
    step_cost: float | None = None

    @property
    def deployed(self) -> int:
        """Deployed parameters."""
        return self.counts.deployed


def candidate(
    space: BoundSpace,
    values: Mapping[str, Any],
    budget: Budget,
    *,
    change: Callable[[Recipe], Recipe] | None = None,
) -> Candidate:
    """Repair values into the budget, and into the limits of a `ResourceBudget`, and make their recipe.

    Args:
        change: alters how the repaired recipe trains, before it is hashed.

    Raises:
        AutoPEFTError: nothing near the values fits, or the values are not the space's.
    """
    found = repair_within(space, values, budget)
    recipe = found.recipe if change is None else change(found.recipe)
    digest = build_graph(recipe, space.spec).trial_hash()
    if space.parameters:
        recipe = recipe.model_copy(update={"name": name_from(recipe.layers, recipe.model, digest)})
    return Candidate(recipe, found.counts, digest, found.values)


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
    repairer = space.kept(_LimitedRepair, budget)
    inside = repairer.inside(values) or repairer.fallback
    if inside is None:
        raise repairer.infeasible()
    return replace(inside, changed=dict(inside.values) != dict(values))


class _LimitedRepair:
    """Moves points of a space into the limits of a budget, and remembers the excess of each point.

    `space.kept(_LimitedRepair, budget)` is the one of a space and a budget.
    """

    def __init__(self, space: BoundSpace, budget: ResourceBudget) -> None:
        self.space, self.budget = space, budget
        self.balance = space.kept(Balance)
        self.least, self.most = budget.limits(space.spec)
        self._known: Memo[Any, float] = Memo(_KEPT)
        self._nearest: tuple[float, Resources] | None = None
        # Of the training section, predictions depend on the dropout alone.
        training = space.templates.training
        dropout = training.nodes.get("dropout") if isinstance(training, Mapped) else None
        slots = () if dropout is None else tuple(slots_of(dropout))
        self._dropout = dropout if slots else None
        self._varied = [slot.parameter(None) for slot in slots]

    def excess(self, values: Values) -> float:
        """How far a point is over the limits; infinite where it cannot be built."""
        dropout = self._dropout and fill(self._dropout, self.space.context(values, None))
        key = (dropout, *self.balance.structural(values).items())
        known = self._known.get(key)
        if known is not None:
            return known
        try:
            graph = build_graph(self.space.materialize(values), self.space.spec)
        except AutoPEFTError:
            return self._known.keep(key, math.inf)
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
        return self._known.keep(key, over)

    def inside(self, wanted: Values) -> Repaired | None:
        """The point, or one near it, inside all limits; `None` where single moves do not lead there."""
        within = self.budget.within
        # What cannot be served, or cannot act on such a backbone, is replaced before the budget is looked at,
        # so that the rest keeps its room.
        if within.serve is not None:
            wanted = self._replaced(wanted, _served(self.space, self.balance, wanted, within.serve))
        if within.quantize is not None:
            wanted = self._replaced(wanted, _right(self.space, on_packed))
        if within.processes > 1:
            wanted = self._replaced(wanted, _right(self.space, on_sharded))
        start = repair(self.space, wanted, self.budget)
        values = dict(start.values)
        over = self.excess(values)
        if over == 0:
            return start
        values, over = self._smaller_file(values, over)
        for _ in range(_MOVES):
            if over == 0:
                counts = self.balance.counter.count(values)
                return Repaired(dict(values), self.space.materialize(values), counts, changed=True)
            step = self._step(values, over)
            if step is None:
                # Something may have to be there before the last thing can leave: a change that costs nothing,
                # after which another helps.
                level = (moved for moved, _ in self._moves(values) if self.excess(moved) <= over)
                steps = (self._step(moved, over) for moved in level)
                step = next((found for found in steps if found is not None), None)
            if step is None:
                return None
            values, over = step
        return None

    def _replaced(self, values: Values, fits: Callable[[Item], bool]) -> Values:
        """The point with other items in place of those that do not fit, or without them."""
        for unit in self.space.units:
            item = self.space.item(unit, values)
            if item is None or fits(item):
                continue
            for name in unit.item_parameters:
                changed = [{**values, name: value} for value in self.balance.choices[name]]
                items = [self.space.item(unit, there) for there in changed]
                fitting = [(i is None, n) for n, i in enumerate(items) if i is None or fits(i)]
                if fitting:
                    values = changed[min(fitting)[1]]
                    break
        return values

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

    @cached_property
    def fallback(self) -> Repaired | None:
        """The first point inside that is reached from the points where a search starts, or from the smallest
        member."""
        smallest = dict(self.balance.smallest[0])
        for start in [*starting_points(self.space, len(self.space.units) + 1), smallest]:
            try:
                found = self.inside(start)
            except Infeasible:
                continue
            if found is not None:
                return found
        return None

    def infeasible(self) -> Infeasible:
        """The error where nothing was found: it names the nearest point's excess."""
        nearest = "" if self._nearest is None else "; ".join(self.budget.within.broken(self._nearest[1]))
        return Infeasible(
            f"No member of space {self.space.name!r} was found within the limits ({self.budget.within}) and "
            f"the budget {self.budget}. The nearest is not: {nearest or 'it is over the budget'}. Raise the "
            "limit, or take a space with smaller methods, later layers or methods that can be served so."
        )


def _in_peft(items: Iterable[Item | None]) -> Iterator[str]:
    """The methods of these items that peft has a format for."""
    for item in items:
        if isinstance(item, EntryItem) and getattr(get_method(item.method), "peft", None) is not None:
            yield item.method


def _served(space: BoundSpace, balance: Balance, values: Values, way: str) -> Callable[[Item], bool]:
    """Whether an item can be served that way, as far as its methods and compositions tell; what only a whole
    graph tells is left to the repairer."""
    if way == "peft":
        # Its format holds one method: the one that most of the units have, or else the first on offer.
        there = Counter(_in_peft(space.item(unit, values) for unit in space.units))
        changed = (
            space.item(unit, {**values, name: value})
            for unit in space.units
            for name in unit.item_parameters
            for value in balance.choices[name]
        )
        most = next((m for m, _ in there.most_common(1)), None) or next(_in_peft(changed), None)
        return lambda item: isinstance(item, EntryItem) and item.method == most

    def fits(item: Item) -> bool:
        if isinstance(item, EntryItem):
            method = get_method(item.method)(validate_config(item.method, item.config))
            lora = getattr(method, "change_rank", None) is not None
            return bool(method.traits.mergeable) and (way == "merged" or lora)
        traits = get_composition(item.kind).traits
        return (traits.mergeable if way == "merged" else traits.additive) and all(map(fits, item.children))

    return fits


def _right(space: BoundSpace, wrong: Callable[[CompositionGraph], str | None]) -> Callable[[Item], bool]:
    """Whether nothing is wrong with an item by itself (see `on_packed` and `on_sharded`)."""

    def fits(item: Item) -> bool:
        items = [item.to_data()]
        named = {"name": "one", "inputs": {n: i.to_data() for n, i in space.inputs_of((item,)).items()}}
        for placed in ({"layers": [{"attach": items}]}, {"model": items}):
            try:
                return wrong(build_graph(Recipe.from_dict({**named, **placed}), space.spec)) is None
            except AutoPEFTError:  # not in layers, or not for the whole model
                continue
        return True

    return fits


def check_within(space: BoundSpace, budget: Budget) -> None:
    """Check that some member of the space lies inside budget and limits.

    Raises:
        Infeasible: repair finds none; the message says how near it came.
    """
    if isinstance(budget, ResourceBudget) and budget.within:
        repairer = space.kept(_LimitedRepair, budget)
        if repairer.fallback is None:
            raise repairer.infeasible()


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
    repairer, rng = space.kept(_LimitedRepair, budget), random.Random(seed)
    points = (repairer.balance.at(space.sample(rng)) for _ in range(n))
    inside = [p for p in points if p.present and repairer.least <= p.total <= repairer.most]
    return sum(repairer.excess(p.values) == 0 for p in inside) / n

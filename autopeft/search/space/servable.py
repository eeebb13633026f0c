"""Points of a space with other methods in place of those that cannot be served as is asked for, or cannot act
on a quantised backbone, or over several processes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from autopeft.composition import get_composition
from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, build_graph
from autopeft.method import get_method
from autopeft.recipe import EntryItem, Item, Recipe
from autopeft.recipe.models import validate_config
from autopeft.search.space.bound import BoundSpace

if TYPE_CHECKING:
    from autopeft.search.space.repair import Balance

__all__ = ["servable", "without"]


def servable(space: BoundSpace, balance: Balance, values: dict[str, Any], way: str) -> dict[str, Any]:
    """The point with others in place of what cannot be served, or without it, before the budget is looked at:
    so that what can be keeps its room.

    It goes as far as single methods tell; what a whole graph tells is up to repair.
    """
    return _replaced(space, balance, values, _rule(space, balance, values, way))


def without(
    space: BoundSpace,
    balance: Balance,
    values: dict[str, Any],
    wrong: Callable[[CompositionGraph], str | None],
) -> dict[str, Any]:
    """The point with others in place of what is `wrong` by itself (see `on_packed` and `on_sharded`)."""

    def fits(item: Item) -> bool:
        told = [item.to_data()]
        for recipe in ({"layers": [{"attach": told}]}, {"model": told}):
            try:
                return wrong(build_graph(Recipe.from_dict({"name": "one", **recipe}), space.spec)) is None
            except AutoPEFTError:  # not in layers, or not for the whole model
                continue
        return True

    return _replaced(space, balance, values, fits)


def _replaced(
    space: BoundSpace, balance: Balance, values: dict[str, Any], fits: Callable[[Item], bool]
) -> dict[str, Any]:
    for unit in space.units:
        item = space.item(unit, values)
        if item is None or fits(item):
            continue
        for name in unit.item_parameters:
            changed = [{**values, name: value} for value in balance.choices[name]]
            items = [space.item(unit, there) for there in changed]
            fitting = [(i is None, n) for n, i in enumerate(items) if i is None or fits(i)]
            if fitting:
                values = changed[min(fitting)[1]]
                break
    return values


def _rule(space: BoundSpace, balance: Balance, values: dict[str, Any], way: str) -> Callable[[Item], bool]:
    """Whether an item can be served, as far as its methods and compositions say."""
    if way == "merged":
        return _merges
    if way == "vllm":
        return _is_lora
    # peft holds one method: the one that most of the units are of, or else the first that a choice offers.
    there = Counter(_in_peft(space.item(unit, values) for unit in space.units))
    changed = (
        space.item(unit, {**values, name: value})
        for unit in space.units
        for name in unit.item_parameters
        for value in balance.choices[name]
    )
    most = next((method for method, _ in there.most_common(1)), None) or next(_in_peft(changed), None)
    return lambda item: isinstance(item, EntryItem) and item.method == most


def _in_peft(items: Iterable[Item | None]) -> Iterator[str]:
    """The methods of these items that peft has a format for."""
    for item in items:
        if isinstance(item, EntryItem) and getattr(get_method(item.method), "peft", None) is not None:
            yield item.method


def _merges(item: Item) -> bool:
    if isinstance(item, EntryItem):
        return bool(_configured(item).traits.mergeable)
    return get_composition(item.kind).traits.mergeable and all(map(_merges, item.children))


def _is_lora(item: Item) -> bool:
    if isinstance(item, EntryItem):
        method = _configured(item)
        return bool(method.traits.mergeable) and getattr(method, "change_rank", None) is not None
    return get_composition(item.kind).traits.additive and all(map(_is_lora, item.children))


def _configured(item: EntryItem) -> Any:
    return get_method(item.method)(validate_config(item.method, item.config))

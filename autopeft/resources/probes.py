"""Which recipes are measured, so that the cost of others can be told from them.

The backbone's own share is found from a head alone and a small LoRA at several depths. Each method is
measured by itself in a few layers, at a small and at a large size: what it costs in one layer it costs in
another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.counting import count
from autopeft.errors import UsageError
from autopeft.method import get_method
from autopeft.recipe import CompositionItem, EntryItem, Item, LayerBlock, Recipe
from autopeft.spec import BackboneSpec

__all__ = ["Offer", "base_probes", "dropout_probes", "method_probes"]

_LAYERS = 2  # that a method is measured in, below the last one


@dataclass(frozen=True)
class Offer:
    """An item of a recipe as it was met: `whole` tells those that are listed under `model:`."""

    item: Item
    whole: bool

    @classmethod
    def of(cls, recipe: Recipe) -> list[Offer]:
        """Every item of a recipe."""
        layered = [cls(item, False) for block in recipe.layers for item in block.attach]
        return [*layered, *(cls(item, True) for item in recipe.model)]


def base_probes(spec: BackboneSpec) -> list[Recipe]:
    """The head alone, then a small LoRA in the last layer, in the last few, and in the lower half at one or
    two depths: they tell a layer's cost from that of what is attached. One more on all maps of the last one:
    where that is computed for few positions, what a call takes is told from what its numbers take."""
    layers = min(stack.layers for stack in spec.stacks)
    item = {"lora": {"rank": 4}}
    places = [[first] for first in dict.fromkeys((layers - 3, layers // 2, layers // 4, 0)) if first >= 0]
    found = [_recipe(at, item) for at in (["last 1"] if layers else []) + places]
    if layers:
        found.append(_recipe("last 1", {"lora": {"rank": 4, "sites": ["q", "k", "v", "o", "up", "down"]}}))
    return [Recipe(name="head alone"), *_fitting(found, spec)]


def dropout_probes(spec: BackboneSpec) -> list[Recipe]:
    """A small LoRA with the backbone's own dropout, high up and at the bottom: no layer is left out then."""
    layers = min(stack.layers for stack in spec.stacks)
    found = [_recipe([first], {"lora": {"rank": 4}}) for first in dict.fromkeys((max(0, layers - 2), 0))]
    with_dropout = [
        recipe.model_copy(update={"training": recipe.training.model_copy(update={"dropout": True})})
        for recipe in found
    ]
    return _fitting(with_dropout, spec)


def method_probes(offers: Iterable[Offer], spec: BackboneSpec) -> list[Recipe]:
    """The smallest and the largest member of each method, and of each way to compose some, on their own."""
    groups: dict[Any, dict[int, Recipe]] = {}
    for offer in offers:
        recipe = _alone(offer, spec)
        try:
            size = count(recipe, spec).deployed
        except UsageError:  # not in these layers, or not on this backbone
            continue
        groups.setdefault((offer.whole, *_kinds(offer.item)), {}).setdefault(size, recipe)
    found: list[Recipe] = []
    for _, members in sorted(groups.items(), key=lambda item: str(item[0])):
        sizes = sorted(members)
        found += [members[size] for size in dict.fromkeys((sizes[0], sizes[-1]))]
    return found


def _alone(offer: Offer, spec: BackboneSpec) -> Recipe:
    if offer.whole:
        return Recipe(name="probe", model=(offer.item,))
    layers = min(stack.layers for stack in spec.stacks)
    first = max(0, layers - 1 - _LAYERS)
    at = list(range(first, max(first + 1, layers - 1)))
    return Recipe(name="probe", layers=(LayerBlock.model_validate({"at": at, "attach": (offer.item,)}),))


def _recipe(at: Any, item: Any) -> Recipe:
    return Recipe.from_dict({"name": "probe", "layers": [{"at": at, "attach": [item]}]})


def _fitting(recipes: Sequence[Recipe], spec: BackboneSpec) -> list[Recipe]:
    kept = []
    for recipe in recipes:
        try:
            count(recipe, spec)
        except UsageError:  # a backbone without q and v
            continue
        kept.append(recipe)
    return kept


def _kinds(item: Item) -> tuple[str, ...]:
    """The method, or the composition and the methods in it."""
    if isinstance(item, EntryItem):
        return (get_method(item.method).name,)
    assert isinstance(item, CompositionItem)
    return (item.kind, *(name for child in item.children for name in _kinds(child)))

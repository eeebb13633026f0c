"""A search space on a backbone: its flat list of parameters, and the recipes that their values stand for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.composition import get_composition
from autopeft.counting import count
from autopeft.errors import CompositionError, MethodError, RecipeError, SiteError, near
from autopeft.graph import Memo
from autopeft.recipe import CompositionItem, EmptyRecipe, Item, LayerBlock, Recipe
from autopeft.recipe.names import check_groups, check_names
from autopeft.recipe.parse import read_item, read_training
from autopeft.recipe.pooling import Pooling, pooled
from autopeft.recipe.problems import Problems
from autopeft.recipe.size import MOST_VALUES
from autopeft.search.space.compiler import BlockTemplate, ItemTemplate, Templates
from autopeft.search.space.expressions import ABSENT, Context, Node, Ref, Slot, size_of
from autopeft.search.space.layers import BlockPlaces, Where, key_of, row_of
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.simplify import (
    blocks_of,
    drop_groups,
    drop_head_parts,
    number_alias,
    prune,
)
from autopeft.spec import BackboneSpec

__all__ = ["BoundSpace", "Unit"]

_ITEMS = 1 << 12
_UNREAD: Any = object()


@dataclass(frozen=True, eq=False)
class Unit:
    """An item of the space, there or not as a whole: at its block's layers, in one layer, or in the model.

    `item_parameters` decide what it is, `place_parameters` where it is; `size_parameters`, some of the
    former, are numbers in its config. `key(values)` is what of the first matters at these values, for
    look-ups.
    """

    index: int
    template: ItemTemplate
    block: BlockTemplate | None
    layer: int | None
    item_parameters: tuple[str, ...]
    place_parameters: tuple[str, ...]
    size_parameters: tuple[str, ...]
    key: Callable[[Mapping[str, Any]], Any]


class BoundSpace:
    """A space on a backbone.

    Args:
        steps: of each training, which raise the lower ends of learning rates; `None` for the ends as they
            stand in the file.
        pooling: what the heads of its recipes read, where they do not say so themselves.

    Raises:
        RecipeError: the space is too large for a backbone of so many layers, or a range is empty on it.

    Attributes:
        parameters: the flat, static list: shared ones in file order, then those of each layer.
        units: what the parameters put in or leave out.
        left_out: methods that this backbone cannot take, with the reason, as far as they were asked for.
        kept: what others remember of the space, for as long as it lives.
        deep_head: whether the task's head has layers before its last map: groups for them are left out where
            it has none.
    """

    def __init__(
        self,
        templates: Templates,
        spec: BackboneSpec,
        steps: int | None = None,
        pooling: Pooling = "own",
    ) -> None:
        self.templates, self.pooling = templates, pooling
        self.spec = spec.past_pooler if pooling == "mean" else spec
        self.deep_head = spec.logits is not None and spec.logits.deep
        self._steps = steps
        self._hidden = spec.stacks[0].hidden
        self._layers = max(stack.layers for stack in spec.stacks)
        self._places = {block: BlockPlaces(block, spec, self.context) for block in templates.blocks}
        self._repeated = self._layers_of_slots()
        self._check_size()
        self.parameters = tuple(self._parameters())
        self._by_name = {p.name: p for p in self.parameters}
        self._row = row_of(self._by_name)
        self._own = [p.own_values() for p in self.parameters]
        self.units = tuple(self._units())
        self._groups: dict[tuple[BlockTemplate | None, int | None], list[Unit]] = {}
        for unit in self.units:
            self._groups.setdefault((unit.block, unit.layer), []).append(unit)
        self._items: Memo[Any, Item | None] = Memo(_ITEMS)
        self.left_out: dict[str, str] = {}
        self.kept: dict[type[Any], Any] = {}

        self._check_names()

    @property
    def name(self) -> str:
        return self.templates.name

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name."""
        return self._by_name[name]

    def cardinality(self) -> int:
        """Number of combinations of the discrete parameters, exact; `continuous` names the others."""
        return math.prod(p.cardinality for p in self.parameters)

    @property
    def continuous(self) -> tuple[str, ...]:
        """Names of the continuous parameters."""
        return tuple(p.name for p in self.parameters if p.kind == "float" and p.low < p.high)

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """Values drawn independently; the recipe that they stand for may be empty."""
        return {p.name: p.sample(rng) for p in self.parameters}

    def middle(self) -> dict[str, Any]:
        """The mid-point of the space."""
        return {p.name: p.middle for p in self.parameters}

    def check(self, values: Mapping[str, Any]) -> None:
        """Check that `values` are one allowed value for each parameter.

        Raises:
            RecipeError: one is missing, unknown or not allowed.
        """
        if self._plain(values):
            return
        for parameter in self.parameters:
            if parameter.name not in values:
                raise RecipeError(f"Parameter {parameter.name!r} of space {self.name!r} has no value.")
            parameter.check(values[parameter.name])
        for name in values:
            if name not in self._by_name:
                raise RecipeError(
                    f"Space {self.name!r} has no parameter {name!r}.{near(name, self._by_name)}"
                )

    def _plain(self, values: Mapping[str, Any]) -> bool:
        """Whether every value is at first sight one of its parameter's own."""
        try:
            row = self._row(values)
            for own, value in zip(self._own, row, strict=True):
                if own[value] is not value.__class__:
                    return False
        except (KeyError, TypeError):
            return False
        return len(values) == len(row)

    def materialize(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe that `values` stand for.

        Raises:
            EmptyRecipe: they leave no entry at all.
            RecipeError: a value is missing, unknown or not allowed.
        """
        self.check(values)
        blocks: list[LayerBlock] = []
        for (block, layer), units in self._groups.items():
            items = tuple(item for u in units if (item := self.item(u, values)) is not None)
            if block is not None and items:
                blocks.extend(self._attach(block, layer, items, values))
        model = tuple(
            item for u in self.units if u.block is None and (item := self.item(u, values)) is not None
        )
        if not blocks and not model:
            raise EmptyRecipe(
                f"These values of space {self.name!r} leave no method at all; switch something on."
            )
        fields: dict[str, Any] = {"name": self.name, "layers": tuple(blocks), "model": model}
        tree = {"training": drop_groups(self.training(values), fields["layers"], model)}
        problems = Problems(tree, f"space {self.name!r}")
        fields["training"] = read_training(tree, problems)
        check_names([("layers", i, "attach") for i in range(len(blocks))], fields, problems)
        if not problems.found:
            check_groups(fields, problems)
        problems.check()
        return pooled(Recipe(reference=self.templates.reference, **fields), self.pooling)

    def training(self, values: Mapping[str, Any]) -> Any:
        """The training section at these values, as it stands in a file."""
        filled = self.templates.training.fill(self.context(values, None))
        return filled if self.deep_head else drop_head_parts(filled)

    def _attach(
        self, block: BlockTemplate, layer: int | None, items: tuple[Item, ...], values: Mapping[str, Any]
    ) -> Iterator[LayerBlock]:
        yield from blocks_of(items, self._places[block].where(values, layer))

    def item(self, unit: Unit, values: Mapping[str, Any]) -> Item | None:
        """What a unit attaches, or `None` where it is absent or the backbone cannot take it."""
        key = (unit.index, unit.key(values))
        found = self._items.get(key, _UNREAD)
        return self._items.keep(key, self._read(unit, values)) if found is _UNREAD else found

    def _read(self, unit: Unit, values: Mapping[str, Any]) -> Item | None:
        context = self.context(values, unit.layer)
        stacks = self.stacks(unit, values)
        tree = prune(unit.template.node.fill(context), self.spec, stacks)
        if tree is ABSENT:
            return None
        if unit.layer is not None:
            tree = number_alias(tree, unit.layer)
        problems = Problems(tree, f"space {self.name!r}")
        item = read_item(tree, (), unit.template.level, problems)
        problems.check()
        return None if item is None else self._offered(item, unit.block, stacks)

    def _offered(
        self, item: Item, block: BlockTemplate | None, stacks: tuple[str, ...] | None
    ) -> Item | None:
        """An item without entries that this backbone cannot take; `left_out` keeps the reasons."""
        if isinstance(item, CompositionItem):
            children = tuple(
                c for child in item.children if (c := self._offered(child, block, stacks)) is not None
            )
            if len(children) == 1 and get_composition(item.kind).traits.several:
                return children[0]
            return item.model_copy(update={"children": children}) if children else None
        if stacks == ():
            return None
        stack = "all" if stacks is None or len(stacks) > 1 else stacks[0]
        layers = () if block is None else (LayerBlock.model_validate({"stack": stack, "attach": (item,)}),)
        try:
            count(Recipe(layers=layers, model=() if block is not None else (item,)), self.spec)
        except (CompositionError, MethodError, SiteError) as error:
            self.left_out[item.method] = str(error)
            return None
        return item

    def where(self, unit: Unit, values: Mapping[str, Any]) -> Where | None:
        """`at` and `stack` of the recipe's blocks that a unit stands in, `None` for one of the model."""
        return None if unit.block is None else self._places[unit.block].where(values, unit.layer)

    def stacks(self, unit: Unit, values: Mapping[str, Any]) -> tuple[str, ...] | None:
        """The stacks of this backbone that a unit's block covers, `None` for one of the model."""
        return None if unit.block is None else self._places[unit.block].stacks(values)

    def context(self, values: Mapping[str, Any], layer: int | None) -> Context:
        """What templates are filled from at these values, in a layer or outside of layers."""
        return Context(values, self._hidden, self._layers - 1, layer)

    def _check_size(self) -> None:
        """Refuse what is too large once it is drawn for each layer of this backbone."""
        sizes = [size_of(item.node) for item in self.templates.model]
        for block in self.templates.blocks:
            times = len(self._places[block].reach) if block.each_layer else 1
            sizes += [size_of(item.node) * times for item in block.items]
        shared = sum(not slot.per_layer for slot in self.templates.slots)
        found = {
            "recipes of up to {} values": sum(sizes),
            "{} parameters": shared + sum(map(len, self._repeated.values())),
        }
        for what, number in found.items():
            if number > MOST_VALUES:
                raise RecipeError(
                    f"Space {self.name!r} has {what.format(f'{number:,}')} on a backbone of {self._layers:,} "
                    f"layers, and at most {MOST_VALUES:,} are taken; offer less under each_layer."
                )

    def _check_names(self) -> None:
        """Refuse two parameters of one name: what is drawn for each layer is called after it."""
        if len(self._by_name) < len(self.parameters):
            names = [p.name for p in self.parameters]
            twice = next(name for name in names if names.count(name) > 1)
            raise RecipeError(
                f"Two parameters of space {self.name!r} are called {twice!r}, as what is drawn for each "
                "layer is. Give an entry or a variable that is called layer_… another name."
            )

    def _parameters(self) -> Iterator[Parameter]:
        context = self.context({}, None)
        for slot in self.templates.slots:
            if not slot.per_layer:
                yield _parameter(slot, context, None, self._steps)
        for layer in range(self._layers):
            for slot in self.templates.slots:
                if slot.per_layer and layer in self._repeated.get(slot, ()):
                    yield _parameter(slot, context, layer, self._steps)

    def _layers_of_slots(self) -> dict[Slot, set[int]]:
        """The layers for which each slot that is drawn per layer is needed."""
        needed: dict[Slot, set[int]] = {}
        for block in self.templates.blocks:
            nodes = [] if block.switch is None else [block.switch]
            nodes += [item.node for item in block.items if block.each_layer]
            for slot in (s for node in nodes for s in node.slots() if s.per_layer):
                needed.setdefault(slot, set()).update(self._places[block].reach)
        return needed

    def _units(self) -> Iterator[Unit]:
        index = 0
        for block in self.templates.blocks:
            layers: tuple[int | None, ...] = self._places[block].reach if block.each_layer else (None,)
            for layer in layers:
                place = self._places[block].parameters_in(layer)
                for template in block.items:
                    yield self._unit(index, template, block, layer, place)
                    index += 1
        for template in self.templates.model:
            yield self._unit(index, template, None, None, ())
            index += 1

    def _unit(
        self,
        index: int,
        template: ItemTemplate,
        block: BlockTemplate | None,
        layer: int | None,
        place: tuple[str, ...],
    ) -> Unit:
        slots = list(dict.fromkeys(template.node.slots()))
        stack = [] if block is None else [slot.parameter(None) for slot in block.stack.slots()]
        item = dict.fromkeys([*(slot.parameter(layer) for slot in slots), *stack])
        sizes = tuple(slot.parameter(layer) for slot in slots if slot.numeric or slot.kind != "categorical")
        key = _item_key(template.node, layer, stack)
        return Unit(index, template, block, layer, tuple(item), place, sizes, key)


def _item_key(node: Node, layer: int | None, others: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    """Reads what matters of an item: where it is one of several, the choice and what is in the chosen one."""
    if not isinstance(node, Ref) or node.slot.kind != "categorical":
        return key_of(dict.fromkeys([*(slot.parameter(layer) for slot in node.slots()), *others]))
    choice = node.slot.parameter(layer)
    keys = {value: _item_key(option, layer, [choice, *others]) for value, option in node.slot.options.items()}
    return lambda values: keys[values[choice]](values)


def _raised(low: float, high: float, factor: float) -> float:
    """The lower end of a rate's range for a training that is shorter by `factor`: so much larger, up to the
    middle of the range. An optimizer such as Adam moves a weight by at most its rate a step."""
    if factor <= 1:
        return low
    raised = float(f"{min(low * factor, math.sqrt(low * high)):.3g}")
    return min(max(raised, low), high)


def _parameter(slot: Slot, context: Context, layer: int | None, steps: int | None) -> Parameter:
    """A slot's parameter in one layer, or shared."""
    name = slot.parameter(layer)
    if slot.kind == "categorical":
        sizes = tuple(node.fill(context) for node in slot.options.values()) if slot.numeric else ()
        return Parameter(name, slot.kind, choices=tuple(slot.options), sizes=sizes)
    low, high = slot.low.fill(context), slot.high.fill(context)
    if low > high:
        raise RecipeError(f"The range of {name!r} is empty on this backbone: {low} to {high}; widen it.")
    if slot.steps is not None and steps is not None:
        low = _raised(low, high, slot.steps / steps)
    return Parameter(name, slot.kind, low=low, high=high, log=slot.log, steps=slot.steps)

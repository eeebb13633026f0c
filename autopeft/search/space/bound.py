"""A search space on a backbone: its flat list of parameters, and the recipes that their values stand for."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any, TypeVar

from autopeft.composition import get_composition, is_composition
from autopeft.counting import count
from autopeft.errors import CompositionError, MethodError, RecipeError, SiteError, near
from autopeft.graph import Memo
from autopeft.recipe import CompositionItem, EmptyRecipe, InputItem, Item, LayerBlock, Recipe, resolve_layers
from autopeft.recipe.inputs import address_of
from autopeft.recipe.layers import At, normalise_at
from autopeft.recipe.models import entry_items
from autopeft.recipe.names import check_groups, check_names, named_entries, parts_named
from autopeft.recipe.parse import read_item, read_training
from autopeft.recipe.pooling import Pooling, pooled
from autopeft.recipe.problems import MarkedDict, Problems, copy_lines
from autopeft.recipe.size import MOST_VALUES
from autopeft.recipe.training import HEAD_PARTS, address
from autopeft.search.space.parameters import Parameter
from autopeft.search.space.templates import (
    ABSENT,
    BlockTemplate,
    Const,
    Context,
    ItemTemplate,
    Node,
    Ref,
    Slot,
    Templates,
    fill,
    options_of,
    prune,
    size_of,
    slots_of,
)
from autopeft.spec import BackboneSpec

__all__ = ["BoundSpace", "Unit", "Where", "blocks_of", "drop_groups", "drop_head_parts", "key_of"]

_ITEMS = 1 << 12
_LAYER_SETS = 1024
_UNREAD: Any = object()
_STACKS = ("all", "encoder", "decoder")
_PLACED = r"(?=.)(_\d+)?(_encoder|_decoder)?"
"""The suffix of an alias: the layer and the stack that it was drawn for."""

T = TypeVar("T")
_layers_at = lru_cache(_LAYER_SETS)(resolve_layers)  # of sets of layers, in stacks of a depth
Where = tuple[tuple[At, str], ...]
"""`at` and `stack` of the recipe's blocks that a block of the space becomes."""


@dataclass(frozen=True, eq=False)
class Unit:
    """An item of the space, there or not as a whole: at its block's layers, in one layer, or in the model.

    `item_parameters` decide what it is, `place_parameters` where it is; `size_parameters`, some of the
    former, are numbers in its config. `key(values)` are those of the first that matter at these values, as a
    key for look-ups.
    """

    index: int
    template: ItemTemplate
    block: BlockTemplate | None
    layer: int | None
    item_parameters: tuple[str, ...]
    place_parameters: tuple[str, ...]
    size_parameters: tuple[str, ...]
    key: Callable[[Mapping[str, Any]], Any]


class BlockPlaces:
    """The layers and stacks of one block of a space.

    Attributes:
        reach: the layers that the block may cover, whatever the values.
        stacks: names of this backbone's stacks that each value of `stack` means.
    """

    def __init__(
        self,
        block: BlockTemplate,
        spec: BackboneSpec,
        context: Callable[[Mapping[str, Any], int | None], Context],
    ) -> None:
        self._block, self._context = block, context
        self._depths: dict[str, int] = {stack.name: stack.layers for stack in spec.stacks}
        self._last = max(self._depths.values()) - 1
        self.stacks = {s: tuple(n for n in self._depths if s in ("all", n)) for s in _STACKS}
        self._even = {s: len({self._depths[n] for n in names}) == 1 for s, names in self.stacks.items()}
        bare = context({}, None)
        self._of = normalise_at(block.of.value) if isinstance(block.of, Const) else None
        stacks = [fill(option, bare) for option in options_of(block.stack)]
        sets = [normalise_at(fill(option, bare)) for option in options_of(block.of)]
        covered = {name for s in stacks for name in self.stacks[s]}
        self.reach = tuple(
            sorted({i for name in covered for at in sets for i in _layers_at(at, self._depths[name])})
        )

        switch = block.switch
        self._switched: dict[int, tuple[str, dict[Any, bool]]] | None = None
        """For each layer the parameter that switches it, and what its values mean, where the switch is one
        choice."""
        if isinstance(switch, Ref) and len(slots_of(switch)) == 1 and switch.slot.kind == "categorical":
            means = {value: bool(fill(option, bare)) for value, option in switch.slot.options.items()}
            self._switched = {i: (switch.slot.parameter(i), means) for i in self.reach}

    def where(self, values: Mapping[str, Any], layer: int | None = None) -> Where:
        """The recipe's blocks that this one becomes, whole or cut down to a layer; none where no layer is
        left. Stacks of unequal depth have a block each where each has layers of its own."""
        block, context = self._block, self._context(values, None)
        stack: str = fill(block.stack, context)
        names = self.stacks[stack]
        if not names:
            return ()
        of = self._of or normalise_at(fill(block.of, context))
        if block.start is None and block.switch is None and layer is None:
            return ((of, stack),)
        start: Any = 0 if block.start is None else fill(block.start, context)
        first = self._last if start == "last" else min(int(start), self._last)

        # The layers of each stack in canonical form; stacks of one depth have the same ones.
        each: list[tuple[At, str]] = []
        for name in names[:1] if self._even[stack] else names:
            inside = [
                i for i in _layers_at(of, self._depths[name]) if i >= first and (layer is None or i == layer)
            ]
            if self._switched is not None:
                inside = [i for i in inside if self._switched[i][1][values[self._switched[i][0]]]]
            elif block.switch is not None:
                inside = [i for i in inside if fill(block.switch, self._context(values, i))]
            if layer is None and len(inside) == self._depths[name]:
                each.append(("all", name))
            elif inside:
                each.append((tuple(inside), name))
        if self._even[stack] or (len(each) == len(names) and all(at == "all" for at, _ in each)):
            return tuple((at, stack) for at, _ in each[:1])
        return tuple(each)


class BoundSpace:
    """A space on a backbone.

    Args:
        steps: training steps of each trial: few of them raise the lower ends of learning rates. `None` for
            the ends as they stand in the file.
        pooling: what the heads of its recipes read, where they do not say so themselves.

    Raises:
        RecipeError: the space is too large for a backbone of so many layers, or a range is empty on it.

    Attributes:
        parameters: the flat, static list: shared ones in file order, then those of each layer.
        units: items that the parameters put in or leave out.
        inputs: what entries start from.
        left_out: methods that this backbone cannot take, with the reason, as far as points had them so far.
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
        self.templates, self.pooling, self.name = templates, pooling, templates.name
        self.inputs = templates.inputs
        self.spec = spec.past_pooler if pooling == "mean" else spec
        self.deep_head = spec.logits is not None and spec.logits.deep
        self._hidden = spec.stacks[0].hidden
        self._layers = max(stack.layers for stack in spec.stacks)
        self._places = {block: BlockPlaces(block, spec, self.context) for block in templates.blocks}
        self.parameters = self._read_parameters(steps)
        self._by_name = {p.name: p for p in self.parameters}
        self._types = {p.name: {c: type(c) for c in p.choices} for p in self.parameters}
        self._items: Memo[Any, Item | None] = Memo(_ITEMS)
        self.left_out: dict[str, str] = {}
        self._made: dict[tuple[Any, ...], tuple[Any, ...]] = {}

        # Units: items of each block, for each layer where they are drawn so; then those of the model.
        items: list[tuple[ItemTemplate, BlockTemplate | None, int | None, tuple[str, ...]]] = []
        for block in templates.blocks:
            reach = self._places[block].reach
            layers: tuple[int | None, ...] = reach if block.each_layer else (None,)
            for layer in layers:
                shared = [node for node in (block.of, block.stack, block.start) if node is not None]
                names = [slot.parameter(None) for node in shared for slot in slots_of(node)]
                if block.switch is not None:
                    switched = reach if layer is None else (layer,)
                    names += [slot.parameter(i) for i in switched for slot in slots_of(block.switch)]
                place = tuple(dict.fromkeys(names))
                items += [(template, block, layer, place) for template in block.items]
        items += [(template, None, None, ()) for template in templates.model]
        units = []
        for index, (template, within, layer, place) in enumerate(items):
            slots = list(dict.fromkeys(slots_of(template.node)))
            stack = [] if within is None else [slot.parameter(None) for slot in slots_of(within.stack)]
            chosen = dict.fromkeys([*(slot.parameter(layer) for slot in slots), *stack])
            numbers = (slot for slot in slots if slot.numeric or slot.kind != "categorical")
            sizes = tuple(slot.parameter(layer) for slot in numbers)
            key = _item_key(template.node, layer, stack)
            units.append(Unit(index, template, within, layer, tuple(chosen), place, sizes, key))
        self.units = tuple(units)
        self._groups: dict[tuple[BlockTemplate | None, int | None], list[Unit]] = {}
        for unit in self.units:
            self._groups.setdefault((unit.block, unit.layer), []).append(unit)

    def kept(self, make: Callable[..., T], *given: Any) -> T:
        """`make(space, *given)`, made once: each call returns the same object."""
        key = (make, *map(id, given))
        if key not in self._made:
            self._made[key] = (make(self, *given), given)  # keeps `given` alive, so that no id is used again
        made: T = self._made[key][0]
        return made

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
        try:  # a look-up for each value passes nearly all points
            for p in self.parameters:
                value = values[p.name]
                kind = value.__class__
                if p.kind == "categorical":
                    fits = self._types[p.name][value] is kind
                else:
                    number = kind is int or (kind is float and p.kind == "float")
                    fits = number and p.low <= value <= p.high
                if not fits:
                    break
            else:
                if len(values) == len(self.parameters):
                    return
        except (KeyError, TypeError):
            pass  # the loops below name the fault
        for parameter in self.parameters:
            if parameter.name not in values:
                raise RecipeError(f"Parameter {parameter.name!r} of space {self.name!r} has no value.")
            parameter.check(values[parameter.name])
        for name in values:
            if name not in self._by_name:
                raise RecipeError(
                    f"Space {self.name!r} has no parameter {name!r}.{near(name, self._by_name)}"
                )

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
                blocks.extend(blocks_of(items, self._places[block].where(values, layer)))
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
        groups = fields["training"].groups
        if groups and not problems.found:
            check_groups(groups, named_entries(fields["layers"], model), problems)
        problems.check()
        fields["inputs"] = self.inputs_of((*(item for block in blocks for item in block.attach), *model))
        return pooled(Recipe(reference=self.templates.reference, **fields), self.pooling)

    def units_of_entries(self, values: Mapping[str, Any]) -> list[Unit]:
        """Of each entry of the recipe that `values` stand for, in its order, the unit that attaches it."""
        found: list[Unit] = []
        for (block, layer), units in sorted(self._groups.items(), key=lambda group: group[0][0] is None):
            items = [(unit, item) for unit in units if (item := self.item(unit, values)) is not None]
            own = [unit for unit, item in items for _ in entry_items((item,))]
            found += own * (1 if block is None else len(self._places[block].where(values, layer)))
        return found

    def inputs_of(self, items: tuple[Item, ...]) -> dict[str, InputItem]:
        """The inputs that these items start from."""
        named = {address_of(start)[0] for _, entry in entry_items(items) for start in entry.start}
        return {name: item for name, item in self.inputs.items() if name in named}

    def training(self, values: Mapping[str, Any]) -> Any:
        """The training section at these values, as it stands in a file."""
        filled = fill(self.templates.training, self.context(values, None))
        return filled if self.deep_head else drop_head_parts(filled)

    def item(self, unit: Unit, values: Mapping[str, Any]) -> Item | None:
        """What a unit attaches, or `None` where it is absent or the backbone cannot take it."""
        key = (unit.index, unit.key(values))
        item: Item | None = self._items.get(key, _UNREAD)
        if item is not _UNREAD:
            return item
        item, stacks = None, self.stacks(unit, values)
        tree = prune(fill(unit.template.node, self.context(values, unit.layer)), self.spec, stacks)
        if tree is not ABSENT:
            if unit.layer is not None:
                tree = _number_alias(tree, unit.layer)
            problems = Problems(tree, f"space {self.name!r}")
            item = read_item(tree, (), unit.template.level, problems)
            problems.check()
            if item is not None:
                item = self._offered(item, unit.block, stacks)
        return self._items.keep(key, item)

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
        if unit.block is None:
            return None
        return self._places[unit.block].stacks[fill(unit.block.stack, self.context(values, None))]

    def context(self, values: Mapping[str, Any], layer: int | None) -> Context:
        """What templates are filled from at these values, in a layer or outside of layers."""
        return Context(values, self._hidden, self._layers - 1, layer)

    def _read_parameters(self, steps: int | None) -> tuple[Parameter, ...]:
        """The parameters: shared ones in file order, then those of each layer that needs some."""
        layers_of: dict[Slot, set[int]] = {}  # for slots that are drawn for each layer
        for block in self.templates.blocks:
            nodes = [] if block.switch is None else [block.switch]
            nodes += [item.node for item in block.items if block.each_layer]
            for slot in (s for node in nodes for s in slots_of(node) if s.per_layer):
                layers_of.setdefault(slot, set()).update(self._places[block].reach)

        shared = [slot for slot in self.templates.slots if not slot.per_layer]
        sizes = [size_of(item.node) for item in self.templates.model]
        for block in self.templates.blocks:
            times = len(self._places[block].reach) if block.each_layer else 1
            sizes += [size_of(item.node) * times for item in block.items]
        for what, number in (
            ("recipes of up to {} values", sum(sizes)),
            ("{} parameters", len(shared) + sum(map(len, layers_of.values()))),
        ):
            if number > MOST_VALUES:
                raise RecipeError(
                    f"Space {self.name!r} has {what.format(f'{number:,}')} on a backbone of {self._layers:,} "
                    f"layers, and at most {MOST_VALUES:,} are taken; offer less under each_layer."
                )

        context = self.context({}, None)
        drawn: list[tuple[Slot, int | None]] = [(slot, None) for slot in shared]
        for i in range(self._layers):
            each = (slot for slot in self.templates.slots if i in layers_of.get(slot, ()))
            drawn += [(slot, i) for slot in each]
        found = []
        for slot, layer in drawn:
            name = slot.parameter(layer)
            if slot.kind == "categorical":
                numbers = [fill(node, context) for node in slot.options.values()] if slot.numeric else []
                found.append(Parameter(name, slot.kind, choices=tuple(slot.options), sizes=tuple(numbers)))
                continue
            low, high = fill(slot.low, context), fill(slot.high, context)
            if low > high:
                raise RecipeError(
                    f"The range of {name!r} is empty on this backbone: {low} to {high}; widen it."
                )
            if slot.steps is not None and steps is not None and steps < slot.steps:
                # Adam moves a weight by at most its rate a step: the shorter the training, the larger the
                # lower end, up to the middle of the range.
                raised = float(f"{min(low * slot.steps / steps, math.sqrt(low * high)):.3g}")
                low = min(max(raised, low), high)
            found.append(Parameter(name, slot.kind, low=low, high=high, log=slot.log, steps=slot.steps))
        names = [p.name for p in found]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise RecipeError(
                f"Two parameters of space {self.name!r} are called {twice!r}, as what is drawn for each "
                "layer is. Give an entry or a variable that is called layer_… another name."
            )
        return tuple(found)


def _item_key(node: Node, layer: int | None, others: Sequence[str]) -> Callable[[Mapping[str, Any]], Any]:
    """A function that reads the values on which an item depends: where it is a choice, the choice and the
    parameters of the chosen option alone."""
    if not isinstance(node, Ref) or node.slot.kind != "categorical":
        return key_of(dict.fromkeys([*(slot.parameter(layer) for slot in slots_of(node)), *others]))
    choice = node.slot.parameter(layer)
    keys = {value: _item_key(option, layer, [choice, *others]) for value, option in node.slot.options.items()}
    return lambda values: keys[values[choice]](values)


def key_of(names: Iterable[str]) -> Callable[[Mapping[str, Any]], Any]:
    """A function that reads the values of these names as something that can be looked up."""
    names = tuple(names)
    return itemgetter(*names) if names else lambda values: ()


def _number_alias(tree: Any, layer: int) -> Any:
    """An item drawn for one layer, with the layer's number behind each alias, so that names stay unique."""
    if not isinstance(tree, dict):
        return tree
    numbered = MarkedDict(tree)
    for key, body in tree.items():
        if key == "as" and isinstance(body, str):
            numbered[key] = f"{body}_{layer}"
        elif is_composition(key):
            children = body.get("children") if isinstance(body, dict) else body
            if isinstance(children, list):
                inner = [_number_alias(child, layer) for child in children]
                numbered[key] = MarkedDict({**body, "children": inner}) if isinstance(body, dict) else inner
    return copy_lines(tree, numbered)


def blocks_of(items: tuple[Item, ...], where: Sequence[tuple[At, str]]) -> Iterator[LayerBlock]:
    """The blocks of a recipe that hold these items. Where there are several, one for each stack, its name
    stands behind each alias, so that names stay unique."""
    for at, stack in where:
        own = items if len(where) == 1 else tuple(_with_stack(item, stack) for item in items)
        yield LayerBlock.model_validate({"at": at, "stack": stack, "attach": own})


def _with_stack(item: Item, stack: str) -> Item:
    changes: dict[str, Any] = {} if item.alias is None else {"alias": f"{item.alias}_{stack}"}
    if isinstance(item, CompositionItem):
        changes["children"] = tuple(_with_stack(child, stack) for child in item.children)
    return item.model_copy(update=changes)


def drop_head_parts(training: Any) -> Any:
    """The training section without groups for parts of the task head."""
    if not isinstance(training, dict) or not isinstance(training.get("groups"), dict):
        return training
    parts = {f"head.{part}" for part in HEAD_PARTS}
    left = {group: section for group, section in training["groups"].items() if group not in parts}
    return MarkedDict({**training, "groups": left})


def drop_groups(training: Any, layers: tuple[LayerBlock, ...], model: tuple[Item, ...]) -> Any:
    """The training section without groups of entries and parts that are absent or frozen; an alias that is
    drawn for each layer, or stands in each stack, names all of them."""
    if not isinstance(training, dict) or not isinstance(training.get("groups"), dict):
        return training
    entries = [(name, item) for name, item in named_entries(layers, model) if not item.frozen]
    names = {"head", *(name for name, _ in entries), *(item.method for _, item in entries)}
    aliases = {str(item.alias) for _, item in entries if item.alias is not None}
    groups: dict[str, Any] = {}
    parts = parts_named(training["groups"], entries)
    for group, section in training["groups"].items():
        owner, part = address(group)
        numbered = [a for a in sorted(aliases) if re.fullmatch(re.escape(owner) + _PLACED, a)]
        for name in [owner] if owner in names else numbered:
            there = parts.get(name)
            if not part:
                groups[name] = section
            elif there is None or part in there:
                groups[f"{name}.{part}"] = section
    return MarkedDict({**training, "groups": groups})

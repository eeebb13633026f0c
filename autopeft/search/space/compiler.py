"""From the tree of a space file to slots and templates, and a check of every option, without a backbone.

Every problem is gathered, so that one reading names them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from autopeft.composition import is_composition
from autopeft.errors import RecipeError, near
from autopeft.method import get_method
from autopeft.recipe import EntryItem, Item, LayerBlock
from autopeft.recipe.layers import normalise_at
from autopeft.recipe.models import entry_items
from autopeft.recipe.names import check_groups, check_names
from autopeft.recipe.parse import (
    STACKS,
    check_keys,
    kind_of,
    migrate,
    no_stack,
    read_item,
    read_line,
    read_training,
)
from autopeft.recipe.problems import Path, Problems
from autopeft.recipe.size import check_size
from autopeft.search.space.parameters import ParameterKind
from autopeft.search.space.templates import (
    ABSENT,
    BlockTemplate,
    Const,
    Context,
    Hidden,
    ItemTemplate,
    Last,
    Listed,
    Mapped,
    Node,
    Optional,
    Ref,
    Scaled,
    Slot,
    Templates,
    is_zero,
    options_of,
    prune,
    size_of,
)

__all__ = ["check_templates", "compile_space"]

_TOP_KEYS = ("autopeft", "name", "reference", "vars", "layers", "model", "training")
_BLOCK_KEYS = ("at", "stack", "attach", "each_layer")
_AT_KEYS = ("of", "from", "switch")
_CHOICES = ("choice", "int", "float", "optional")
_SCALED_KEYS = ("scaled", "with", "at", "power", "most")
_HIDDEN = re.compile(r"hidden/([1-9]\d{0,5})")
_MAX_OPTIONS = 1000
_MOST_READ = 300_000
"""Values that are read while options are tried, over all of a space."""
# Stands for a backbone while ranges are read: wide and deep enough for any bound.
_WIDEST = Context({}, 1 << 20, 1 << 20, 0)
_PLAIN = (Const, Hidden, Last)

Values = Mapping[str, Any]


def compile_space(tree: Any, problems: Problems) -> Templates:
    """The templates of a space. What is wrong goes to `problems`; with any found, they are partial.

    Raises:
        RecipeError: the tree is no mapping, or of a schema that cannot be read.
    """
    if not isinstance(tree, dict):
        problems.add(
            (),
            f"a search space is a mapping with the keys {', '.join(_TOP_KEYS)}, but this is {kind_of(tree)}.",
        )
        problems.check()
    check_size(tree, problems)
    tree = migrate(tree, problems)
    problems.tree = tree
    return _Compiler(problems).space(tree)


class _Compiler:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.out = Templates()
        self.vars: dict[str, Slot] = {}
        self.scaled: dict[str, Node] = {}
        self.used: set[str] = set()
        self.taken: dict[str, int] = {}
        self.names: set[str] = set()
        self.layerwise = False

    def space(self, tree: dict[str, Any]) -> Templates:
        check_keys(tree, (), _TOP_KEYS, "a search space", self.problems)
        self.out.name = read_line(tree, "name", self.problems) or self.out.name
        self.out.reference = read_line(tree, "reference", self.problems)
        self.declare(tree.get("vars"))
        for i, block in enumerate(self.listed(tree.get("layers"), ("layers",))):
            self.block(block, ("layers", i))
        for i, item in enumerate(self.listed(tree.get("model"), ("model",))):
            self.out.model.append(self.item(item, ("model", i), "model"))
        training = tree.get("training")
        if training is not None:
            self.out.training = self.node(training, ("training",), "", item=False)
        for name in (*self.vars, *self.scaled):
            if name not in self.used:
                self.problems.add(("vars", name), f"{name!r} is never used; write ${name} where it belongs.")
        if not self.out.blocks and not self.out.model and not self.problems.found:
            self.problems.add((), "a search space offers at least one method, under 'layers:' or 'model:'.")
        return self.out

    def listed(self, value: Any, path: Path) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.problems.add(
            path, f"{path[-1]!r} is a list, but got {kind_of(value)}; put '- ' before each element."
        )
        return []

    def declare(self, tree: Any) -> None:
        if tree is None:
            return
        if not isinstance(tree, dict):
            self.problems.add(("vars",), f"'vars' maps names to choices, but got {kind_of(tree)}.")
            return
        for name, body in tree.items():
            path: Path = ("vars", name)
            if not str(name).isidentifier():
                self.problems.add(path, f"{name!r} is no name; write letters, digits and '_'.")
                continue
            if _is_scaled(body):
                continue
            each = isinstance(body, dict) and set(body) == {"each_layer"}
            inner, place = (body["each_layer"], (*path, "each_layer")) if each else (body, path)
            slot = self.choice(inner, place, name, item=True, per_layer=each) if _is_choice(inner) else None
            if slot is None or _is_optional(inner):
                self.problems.add(
                    path,
                    f"{name!r} declares a choice; write {{choice: […]}}, {{int: [low, high]}} or "
                    "{float: [low, high]}, or one of them under each_layer.",
                )
                continue
            self.vars[name] = slot
        for name, body in tree.items():  # they are made of the others
            if str(name).isidentifier() and _is_scaled(body):
                self.scaled[name] = self.number_with_size(body, ("vars", name), name)

    def block(self, tree: Any, path: Path) -> None:
        if not isinstance(tree, dict):
            self.problems.add(
                path,
                f"a block is a mapping with the keys {', '.join(_BLOCK_KEYS)}, but this is {kind_of(tree)}.",
            )
            return
        check_keys(tree, path, _BLOCK_KEYS, "a block of a space", self.problems)
        if ("attach" in tree) == ("each_layer" in tree):
            self.problems.add(
                path,
                "a block has either 'attach' (its layers share choices) or 'each_layer' (drawn per layer).",
            )
            return
        key = "attach" if "attach" in tree else "each_layer"
        of, start, switch = self.at(tree.get("at", "all"), (*path, "at"))
        stack = self.node(tree.get("stack", "all"), (*path, "stack"), "stack", item=False)
        for value in self.plain_options(stack, (*path, "stack")):
            if value not in STACKS:
                self.problems.add((*path, "stack"), no_stack(value))
        self.layerwise = key == "each_layer"
        listed = self.listed(tree[key], (*path, key))
        items = tuple(self.item(item, (*path, key, i), "layers") for i, item in enumerate(listed))
        self.layerwise = False
        if not listed:
            self.problems.add((*path, key), "a block attaches at least one method; list them here.")
        self.out.blocks.append(BlockTemplate(of, start, switch, stack, items, key == "each_layer", path))

    def at(self, tree: Any, path: Path) -> tuple[Node, Node | None, Node | None]:
        """The three parts of a block's `at`."""
        if not isinstance(tree, dict) or _is_choice(tree):
            return self.layer_set(tree, path), None, None
        check_keys(tree, path, _AT_KEYS, "'at' of a space", self.problems)
        of = self.layer_set(tree.get("of", "all"), (*path, "of"))
        start = switch = None
        if "from" in tree:
            start = self.node(tree["from"], (*path, "from"), "first_layer", item=False)
            self.expect(
                start, (*path, "from"), _is_layer, "'from' is the index of a layer, from 0, or 'last'"
            )
        if "switch" in tree:
            self.layerwise = True
            switch = self.node(tree["switch"], (*path, "switch"), "on", item=False)
            self.layerwise = False
            on_or_off = "'switch' chooses between true and false"
            self.expect(switch, (*path, "switch"), lambda value: isinstance(value, bool), on_or_off)
        return of, start, switch

    def layer_set(self, tree: Any, path: Path) -> Node:
        node = self.node(tree, path, "at", item=False)
        for value in self.plain_options(node, path):
            try:
                normalise_at(value)
            except RecipeError as error:
                self.problems.add(path, str(error))
        return node

    def plain_options(self, node: Node, path: Path) -> Iterator[Any]:
        """The options of one choice, or the value that is there without one."""
        for option in options_of(node):
            if next(option.slots(), None) is None:
                yield option.fill(_WIDEST)
            else:
                self.problems.add(path, "one choice between plain values, without choices inside them.")

    def expect(self, node: Node, path: Path, test: Callable[[Any], bool], what: str) -> None:
        if not all(map(test, _bounds(node))):
            self.problems.add(path, f"{what}.")

    def item(self, tree: Any, path: Path, level: str) -> ItemTemplate:
        return ItemTemplate(self.node(tree, path, _item_name(tree), item=True), path, level)

    def node(self, tree: Any, path: Path, name: str, *, item: bool) -> Node:
        """The template of a tree.

        Args:
            name: of a choice here.
            item: whether it is an item of a list of methods.
        """
        if isinstance(tree, str):
            return self.word(tree, path)
        if _is_scaled(tree):
            return self.number_with_size(tree, path, name)
        if _is_choice(tree):
            slot = self.choice(tree, path, name, item=item, per_layer=self.layerwise)
            if slot is None:
                return Const(None)
            if not _is_optional(tree):
                return Ref(slot)
            inner = self.node(tree["optional"], (*path, "optional"), name.removesuffix(".on"), item=item)
            return Optional(slot, inner)
        if isinstance(tree, dict):
            nodes: dict[str, Node] = {}
            for key, value in tree.items():
                below = (
                    name if item or key in ("groups", "policies") else f"{name}.{key}" if name else str(key)
                )
                if isinstance(value, list) and (key in ("children", "policies") or is_composition(key)):
                    nodes[key] = Listed(
                        tuple(
                            self.node(v, (*path, key, i), _item_name(v), item=True)
                            for i, v in enumerate(value)
                        )
                    )
                else:
                    nodes[key] = self.node(value, (*path, key), below, item=False)
            return Mapped(nodes, tree)
        if isinstance(tree, list):
            return Listed(tuple(self.node(v, (*path, i), name, item=False) for i, v in enumerate(tree)))
        return Const(tree)

    def word(self, text: str, path: Path) -> Node:
        if text.startswith("$"):
            if text[1:] in self.scaled:
                self.used.add(text[1:])
                return self.scaled[text[1:]]
            slot = self.vars.get(text[1:])
            if slot is None:
                known = ["$" + name for name in (*self.vars, *self.scaled)]
                self.problems.add(path, f"{text!r} is not declared under 'vars:'.{near(text, known)}")
                return Const(None)
            if slot.per_layer and not self.layerwise:
                self.problems.add(
                    path, f"{text!r} is drawn for each layer; use it under 'switch:' or 'each_layer:'."
                )
            self.used.add(text[1:])  # the slot has another name where two share one
            return Ref(slot)
        hidden = _HIDDEN.fullmatch(text)
        if hidden:
            return Hidden(int(hidden[1]))
        return Const(text)

    def number_with_size(self, tree: dict[str, Any], path: Path, name: str) -> Node:
        """A number that is larger for smaller sizes."""
        check_keys(tree, path, _SCALED_KEYS, "a number that is scaled with a size", self.problems)

        def part(key: str, called: str) -> Node:
            node = self.node(tree.get(key), (*path, key), called, item=False)
            self.expect(node, (*path, key), _is_finite, f"{key!r} is a number, or a choice between numbers")
            return node

        def plain(key: str, value: Any) -> float:
            if not (_is_finite(value) and value > 0):
                self.problems.add((*path, key), f"{key!r} is a number above 0, but got {value!r:.80}.")
                return math.inf
            return float(value)

        return Scaled(
            part("scaled", name),
            part("with", f"{name}.size"),
            plain("at", tree.get("at")),
            plain("power", tree.get("power", 1.0)),
            plain("most", tree["most"]) if "most" in tree else math.inf,
        )

    def choice(self, tree: Any, path: Path, name: str, *, item: bool, per_layer: bool) -> Slot | None:
        """A new slot for a choice, or `None` where it is malformed."""
        key = next(k for k in _CHOICES if k in tree)
        check_keys(
            tree,
            path,
            {"int": (key, "log"), "float": (key, "log", "steps")}.get(key, (key,)),
            f"a choice by {key!r}",
            self.problems,
        )
        before = len(self.problems.found)
        place = (*path, key)
        if key == "optional":
            options: dict[Any, Node] = {True: Const(True), False: Const(False)}
            return self.add(
                Slot(self.unique(f"{name}.on" if name else "on"), "categorical", per_layer, options)
            )
        if key == "choice":
            slot = self.choices(tree[key], place, name, item, per_layer)
        else:
            slot = self.range(tree, key, place, name, per_layer)
        return slot if len(self.problems.found) == before else None

    def choices(self, tree: Any, path: Path, name: str, item: bool, per_layer: bool) -> Slot | None:
        if not isinstance(tree, list) or not 1 <= len(tree) <= _MAX_OPTIONS:
            got = f"a list of {len(tree):,}" if isinstance(tree, list) else kind_of(tree)
            self.problems.add(path, f"'choice' is a list of 1 to {_MAX_OPTIONS} options, but got {got}.")
            return None
        slot = self.add(Slot(self.unique(name or "choice"), "categorical", per_layer))
        plain = set[Any]()
        for i, option in enumerate(tree):
            label, structured = _label(option), isinstance(option, dict)
            if not isinstance(option, (dict, list)):
                if label in plain:
                    self.problems.add((*path, i), f"{option!r} is offered twice; keep one of them.")
                plain.add(label)
            if label in slot.options:
                label = f"{label}#{i + 1}"
            below = _item_name(option) if item and structured else slot.name
            node = self.node(option, (*path, i), below, item=item)
            slot.options[label] = Const(ABSENT) if item and option is None else node
        slot.numeric = all(_is_number(node) for node in slot.options.values())
        return slot

    def range(self, tree: Any, key: str, path: Path, name: str, per_layer: bool) -> Slot | None:
        bounds, log, steps = tree[key], tree.get("log", False), tree.get("steps")
        kind: ParameterKind = "int" if key == "int" else "float"
        if not isinstance(log, bool):
            self.problems.add((*path[:-1], "log"), f"'log' is true or false, but got {log!r}.")
        if "steps" in tree and not (log is True and _is_integer(steps) and steps > 0):
            self.problems.add(
                (*path[:-1], "steps"),
                f"'steps' is a whole number above 0, of a logarithmic range, but got {steps!r:.80}.",
            )
        if not isinstance(bounds, list) or len(bounds) != 2:
            self.problems.add(path, f"{key!r} takes [low, high], but got {bounds!r:.80}.")
            return None
        low, high = (
            Last() if v == "last" else self.node(v, (*path, i), "", item=False) for i, v in enumerate(bounds)
        )
        fits = _is_integer if kind == "int" else _is_finite
        values = (
            [low.fill(_WIDEST), high.fill(_WIDEST)]
            if isinstance(low, _PLAIN) and isinstance(high, _PLAIN)
            else []
        )
        if not values or not all(fits(v) for v in values):
            numbers = "whole numbers, 'last' or 'hidden/n'" if kind == "int" else "finite numbers"
            self.problems.add(path, f"{key!r} takes two {numbers}, but got {list(bounds)!r:.80}.")
        elif isinstance(low, Const) and isinstance(high, Const) and low.value > high.value:
            self.problems.add(path, f"{list(bounds)!r} runs backwards; write [{high.value}, {low.value}].")
        elif log is True and values[0] <= 0:
            self.problems.add(path, f"a logarithmic range starts above 0, but got {list(bounds)!r}.")
        named = self.unique(name or key)
        return self.add(Slot(named, kind, per_layer, low=low, high=high, log=log is True, steps=steps))

    def add(self, slot: Slot) -> Slot:
        self.out.slots.append(slot)
        return slot

    def unique(self, name: str) -> str:
        n = self.taken.get(name, 0) + 1
        # A choice inside a second one of a name (`rank_2`) begins with that name.
        while (found := name if n == 1 else f"{name}_{n}") in self.names:
            n += 1
        self.taken[name] = n
        self.names.add(found)
        return found


def _is_choice(tree: Any) -> bool:
    return isinstance(tree, dict) and any(k in tree for k in _CHOICES)


def _is_scaled(tree: Any) -> bool:
    return isinstance(tree, dict) and "scaled" in tree


def _is_optional(tree: Any) -> bool:
    return isinstance(tree, dict) and "optional" in tree


def _item_name(tree: Any) -> str:
    """The prefix of names of choices inside an item: its alias, its variable, else its method."""
    if isinstance(tree, str):
        return tree.removeprefix("$")
    if _is_optional(tree):
        return _item_name(tree["optional"])
    if not isinstance(tree, dict) or _is_choice(tree):
        return "method"
    alias = tree.get("as")
    return alias if isinstance(alias, str) else next((str(k) for k in tree if k != "as"), "method")


def _label(option: Any) -> Any:
    """The parameter's value for an option: the option where it is a scalar, else a word."""
    if isinstance(option, list):
        return "+".join(str(_label(v)) for v in option) or "none"
    if isinstance(option, dict):
        return _item_name(option)
    return option


def _bounds(node: Node) -> list[Any]:
    """The values of a node, for a range of whole numbers its ends; `None` for a node that is no value."""
    if isinstance(node, Ref) and node.slot.kind == "categorical":
        return [value for option in options_of(node) for value in _bounds(option)]
    if isinstance(node, Scaled):
        return [value for part in (node.number, node.size) for value in _bounds(part)]
    if isinstance(node, Ref):
        return (
            [] if node.slot.kind == "float" else [node.slot.low.fill(_WIDEST), node.slot.high.fill(_WIDEST)]
        )
    return [node.fill(_WIDEST)] if isinstance(node, _PLAIN) else [None]


def _is_number(node: Node) -> bool:
    return isinstance(node, Hidden) or (isinstance(node, Const) and _is_finite(node.value))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_layer(value: Any) -> bool:
    return value == "last" or (_is_integer(value) and value >= 0)


def check_templates(templates: Templates, problems: Problems) -> None:
    """Read each item and the training section with every option once, and add what is wrong to `problems`.

    Raises:
        RecipeError: there is too much to try, or too much is wrong.
    """
    reader = _Reader(problems)
    for template in [*(item for block in templates.blocks for item in block.items), *templates.model]:
        reader.item(template.node, template.path, template.level)
    if problems.found:
        return
    blocks, places = [], []
    for block in templates.blocks:
        items = _firsts(block.items, problems)
        if items:
            blocks.append(LayerBlock(attach=items))
            places.append(block.path)
    check_names(places, {"layers": tuple(blocks), "model": _firsts(templates.model, problems)}, problems)
    for values in reader.choices(templates.training, ("training",)):
        tree = {"training": templates.training.fill(_context(values))}
        found = problems.inside(tree, ())
        section = read_training(tree, found)
        check_groups(section.groups, reader.named, found)


class _Reader:
    """Reads items with every option that they offer.

    Attributes:
        named: each entry that was read, with its alias or method.
    """

    def __init__(self, problems: Problems) -> None:
        self.named: list[tuple[str, EntryItem]] = []
        self._problems = problems
        self._read = 0

    def item(self, node: Node, path: Path, level: str) -> None:
        """Read every item that a node can become. The children of compositions are read one by one."""
        if isinstance(node, Optional):
            self.item(node.node, path, level)
        elif isinstance(node, Ref) and node.slot.kind == "categorical":
            for option in node.slot.options.values():
                self.item(option, path, level)
        else:
            names = [name for name in node.nodes if name != "as"] if isinstance(node, Mapped) else []
            if isinstance(node, Mapped) and len(names) == 1 and is_composition(names[0]):
                self._composition(node, names[0], path, level)
                return
            for values in self.choices(node, path):
                self._one(node, values, path, level)

    def _composition(self, node: Mapped, name: str, path: Path, level: str) -> None:
        body = node.nodes[name]
        inside: Path = (name,)
        own: dict[str, Node] = {}
        if isinstance(body, Mapped):
            inside, own = (name, "children"), {k: v for k, v in body.nodes.items() if k != "children"}
            body = body.nodes.get("children", Const(None))
        children = body.nodes if isinstance(body, Listed) else getattr(body, "value", None)
        if children in ((), []):  # written without children; one that may be left without any is another
            item = node.fill(_context({}))
            read_item(item, (), level, self._problems.inside(item, path))
            return
        if not isinstance(body, Listed):
            for values in self.choices(node, path):
                self._one(node, values, path, level)
            return
        for i, child in enumerate(body.nodes):
            self.item(child, (*path, *inside, i), level)
        usual = _usual_values(node)
        for values in self.choices(Mapped(own), path):
            self._one(node, {**usual, **values}, path, level)

    def _one(self, node: Node, values: Values, path: Path, level: str) -> None:
        tree = prune(node.fill(_context(values)), None, None)
        if tree is ABSENT:
            return
        item = read_item(tree, (), level, self._problems.inside(tree, path))
        if item is not None:
            entries = [entry for _, entry in entry_items((item,))]
            if any(e.start or "artefacts" in get_method(e.method).traits.needs for e in entries):
                self._problems.add(
                    path,
                    "a search space has no inputs for entries to start from; train such a recipe by "
                    "`autopeft train`.",
                )
            self.named += [(entry.alias or entry.method, entry) for entry in entries]

    def choices(self, node: Node, path: Path) -> Iterator[Values]:
        """Values that together take every option of every slot wherever it is used, one at a time.

        Raises:
            RecipeError: there are too many.
        """
        usual, size = _usual_values(node), size_of(node)
        for values in (usual, *_varied(node, usual)):
            self._read += size
            if self._read > _MOST_READ:
                self._problems.add(
                    path, "there is too much to choose from; offer fewer options in one place."
                )
                self._problems.check()
            yield values


def _firsts(templates: Iterable[ItemTemplate], problems: Problems) -> tuple[Item, ...]:
    """Items with their largest choices."""
    found = []
    for template in templates:
        tree = prune(template.node.fill(_context(_usual_values(template.node))), None, None)
        if tree is not ABSENT:
            found.append(read_item(tree, (), template.level, problems.inside(tree, template.path)))
    return tuple(item for item in found if item is not None)


def _context(values: Values) -> Context:
    """The figures of BERT-base: a usual backbone."""
    return Context(values, 768, 11, 0)


def _usual_values(node: Node) -> dict[str, Any]:
    """For each slot a value that leaves nothing out: the last that is neither zero, false nor absent."""
    found: dict[str, Any] = {}
    for slot in dict.fromkeys(node.slots()):
        values = _extremes(slot)
        usual = values[-1]
        for value in reversed(values):
            option = slot.options.get(value)
            stands_for = option.value if isinstance(option, Const) else value
            if stands_for is not ABSENT and stands_for is not False and not is_zero(stands_for):
                usual = value
                break
        found[slot.parameter(0)] = usual
    return found


def _varied(node: Node, values: Values) -> Iterator[Values]:
    """Values with one option after another; each option above it is set so that it takes effect."""
    if isinstance(node, (Mapped, Listed)):
        for inner in node.nodes.values() if isinstance(node, Mapped) else node.nodes:
            yield from _varied(inner, values)
    elif isinstance(node, Scaled):
        # All pairs of ends: a pair inside them makes a number between theirs.
        for chosen in (values, *_varied(node.number, values)):
            yield chosen
            yield from _varied(node.size, chosen)
    elif isinstance(node, Optional):
        yield {**values, node.slot.parameter(0): False}
        yield from _varied(node.node, {**values, node.slot.parameter(0): True})
    elif isinstance(node, Ref):
        for value in _extremes(node.slot):
            chosen = {**values, node.slot.parameter(0): value}
            yield chosen
            if node.slot.kind == "categorical":
                yield from _varied(node.slot.options[value], chosen)


def _extremes(slot: Slot) -> list[Any]:
    if slot.kind == "categorical":
        return list(slot.options)
    return [slot.low.fill(_context({})), slot.high.fill(_context({}))]

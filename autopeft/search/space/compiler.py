"""From the tree of a space file to slots and templates, and a check of every option, without a backbone.

Every problem is gathered, so that one reading names them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autopeft.composition import is_composition
from autopeft.errors import RecipeError, near
from autopeft.recipe import EntryItem, Item, LayerBlock
from autopeft.recipe.inputs import check_starts, read_inputs
from autopeft.recipe.layers import normalise_at
from autopeft.recipe.models import entry_items
from autopeft.recipe.names import check_groups, check_names
from autopeft.recipe.parse import (
    BESIDE,
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
    fill,
    has_start,
    is_zero,
    options_of,
    prune,
    size_of,
    slots_of,
)

__all__ = ["check_templates", "compile_space", "each_option"]

_TOP_KEYS = ("autopeft", "name", "reference", "inputs", "vars", "layers", "model", "training")
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
# The figures of BERT-base: a usual backbone, on which options are tried.
_USUAL = Context({}, 768, 11, 0)
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
    check_keys(tree, (), _TOP_KEYS, "a search space", problems)
    compiler = _Compiler(problems)
    made = compiler.templates
    made.name = read_line(tree, "name", problems) or made.name
    made.reference = read_line(tree, "reference", problems)
    made.inputs = read_inputs(tree.get("inputs"), problems)

    # Variables: choices first, then numbers that are scaled, which are made of them.
    declared = {} if tree.get("vars") is None else tree["vars"]
    if not isinstance(declared, dict):
        problems.add(("vars",), f"'vars' maps names to choices, but got {kind_of(declared)}.")
        declared = {}
    for name, body in declared.items():
        path: Path = ("vars", name)
        if not str(name).isidentifier():
            problems.add(path, f"{name!r} is no name; write letters, digits and '_'.")
            continue
        if _form_of(body) == "scaled":
            continue
        each = isinstance(body, dict) and set(body) == {"each_layer"}
        inner, place = (body["each_layer"], (*path, "each_layer")) if each else (body, path)
        form, slot = _form_of(inner), None
        if form is not None and form != "scaled":
            slot = compiler.choice(inner, place, name, item=True, per_layer=each)
        if slot is None or form == "optional":
            problems.add(
                path,
                f"{name!r} declares a choice; write {{choice: […]}}, {{int: [low, high]}} or "
                "{float: [low, high]}, or one of them under each_layer.",
            )
            continue
        compiler.vars[name] = slot
    for name, body in declared.items():
        if str(name).isidentifier() and _form_of(body) == "scaled":
            compiler.scaled[name] = compiler.number_with_size(body, ("vars", name), name)

    for i, block in enumerate(compiler.listed(tree.get("layers"), ("layers",))):
        compiler.block(block, ("layers", i))
    for i, item in enumerate(compiler.listed(tree.get("model"), ("model",))):
        path = ("model", i)
        node = compiler.node(item, path, _item_name(item), item=True)
        made.model.append(ItemTemplate(node, path, "model"))
    training = tree.get("training")
    if training is not None:
        made.training = compiler.node(training, ("training",), "", item=False)

    for name in (*compiler.vars, *compiler.scaled):
        if name not in compiler.used:
            problems.add(("vars", name), f"{name!r} is never used; write ${name} where it belongs.")
    if not made.blocks and not made.model and not problems.found:
        problems.add((), "a search space offers at least one method, under 'layers:' or 'model:'.")
    return made


@dataclass
class _Compiler:
    """Makes templates of the parts of one space, and gathers its slots.

    Attributes:
        vars, scaled: the declared choices and numbers, by name; those in `used` are in some part.
        names: of slots; `counts` says how many have begun with a name.
        layerwise: whether the part that is being read is drawn for each layer.
    """

    problems: Problems
    templates: Templates = field(default_factory=Templates)
    vars: dict[str, Slot] = field(default_factory=dict)
    scaled: dict[str, Node] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    layerwise: bool = False

    def listed(self, value: Any, path: Path) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.problems.add(
            path, f"{path[-1]!r} is a list, but got {kind_of(value)}; put '- ' before each element."
        )
        return []

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

        # `at` is a set of layers, or has up to three parts: a set, the first layer, and a switch.
        at, place = tree.get("at", "all"), (*path, "at")
        parts: dict[str, Any] = {"of": at}
        if isinstance(at, dict) and _form_of(at) in (None, "scaled"):
            check_keys(at, place, _AT_KEYS, "'at' of a space", self.problems)
            parts = {"of": "all", **at}
            where = (*place, "of")
        else:
            where = place
        of = self.node(parts["of"], where, "at", item=False)
        for value in self.plain_options(of, where):
            try:
                normalise_at(value)
            except RecipeError as error:
                self.problems.add(where, str(error))
        start = switch = None
        if "from" in parts:
            where = (*place, "from")
            start = self.node(parts["from"], where, "first_layer", item=False)
            if not all(v == "last" or (type(v) is int and v >= 0) for v in _bounds(start)):
                self.problems.add(where, "'from' is the index of a layer, from 0, or 'last'.")
        if "switch" in parts:
            where, self.layerwise = (*place, "switch"), True
            switch = self.node(parts["switch"], where, "on", item=False)
            self.layerwise = False
            if not all(isinstance(value, bool) for value in _bounds(switch)):
                self.problems.add(where, "'switch' chooses between true and false.")

        stack = self.node(tree.get("stack", "all"), (*path, "stack"), "stack", item=False)
        for value in self.plain_options(stack, (*path, "stack")):
            if value not in STACKS:
                self.problems.add((*path, "stack"), no_stack(value))

        self.layerwise = "each_layer" in tree
        where = (*path, "each_layer" if self.layerwise else "attach")
        items = []
        for i, item in enumerate(self.listed(tree[where[-1]], where)):
            node = self.node(item, (*where, i), _item_name(item), item=True)
            items.append(ItemTemplate(node, (*where, i), "layers"))
        if not items:
            self.problems.add(where, "a block attaches at least one method; list them here.")
        made = BlockTemplate(of, start, switch, stack, tuple(items), self.layerwise, path)
        self.templates.blocks.append(made)
        self.layerwise = False

    def plain_options(self, node: Node, path: Path) -> Iterator[Any]:
        """The options of one choice, or the value that is there without one."""
        for option in options_of(node):
            if slots_of(option):
                self.problems.add(path, "one choice between plain values, without choices inside them.")
            else:
                yield fill(option, _WIDEST)

    def node(self, tree: Any, path: Path, name: str, *, item: bool) -> Node:
        """The template of a tree.

        Args:
            name: of a choice here.
            item: whether it is an item of a list of methods.
        """
        if isinstance(tree, str) and tree.startswith("$"):
            variable = tree[1:]
            if variable in self.scaled:
                self.used.add(variable)
                return self.scaled[variable]
            slot = self.vars.get(variable)
            if slot is None:
                known = ["$" + name for name in (*self.vars, *self.scaled)]
                self.problems.add(path, f"{tree!r} is not declared under 'vars:'.{near(tree, known)}")
                return Const(None)
            if slot.per_layer and not self.layerwise:
                self.problems.add(
                    path, f"{tree!r} is drawn for each layer; use it under 'switch:' or 'each_layer:'."
                )
            self.used.add(variable)  # the slot has another name where two share one
            return Ref(slot)
        if isinstance(tree, str):
            hidden = _HIDDEN.fullmatch(tree)
            return Hidden(int(hidden[1])) if hidden else Const(tree)

        form = _form_of(tree)
        if form == "scaled":
            return self.number_with_size(tree, path, name)
        if form is not None:
            slot = self.choice(tree, path, name, item=item, per_layer=self.layerwise)
            if slot is None:
                return Const(None)
            if form != "optional":
                return Ref(slot)
            inner = self.node(tree["optional"], (*path, "optional"), name.removesuffix(".on"), item=item)
            return Optional(slot, inner)

        if isinstance(tree, dict):
            nodes: dict[str, Node] = {}
            for key, value in tree.items():
                # A method's options are named after the item; what stands beside it has its key too.
                beside = key in BESIDE and key != "as"
                plain = (item and not beside) or key in ("groups", "policies")
                below = name if plain else f"{name}.{key}" if name else str(key)
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

    def number_with_size(self, tree: dict[str, Any], path: Path, name: str) -> Node:
        """A number that is larger for smaller sizes."""
        check_keys(tree, path, _SCALED_KEYS, "a number that is scaled with a size", self.problems)
        nodes: list[Node] = []
        for key, called in (("scaled", name), ("with", f"{name}.size")):
            nodes.append(self.node(tree.get(key), (*path, key), called, item=False))
            if not all(map(_is_finite, _bounds(nodes[-1]))):
                self.problems.add((*path, key), f"{key!r} is a number, or a choice between numbers.")
        figures = {"at": tree.get("at"), "power": tree.get("power", 1.0)}
        if "most" in tree:
            figures["most"] = tree["most"]
        for key, value in figures.items():
            if not (_is_finite(value) and value > 0):
                self.problems.add((*path, key), f"{key!r} is a number above 0, but got {value!r:.80}.")
                figures[key] = math.inf
        at, power, most = (float(figures.get(key, math.inf)) for key in ("at", "power", "most"))
        return Scaled(nodes[0], nodes[1], at, power, most)

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
        found, place, inside = len(self.problems.found), (*path, key), tree[key]
        if key == "choice" and not (isinstance(inside, list) and 1 <= len(inside) <= _MAX_OPTIONS):
            got = f"a list of {len(inside):,}" if isinstance(inside, list) else kind_of(inside)
            self.problems.add(place, f"'choice' is a list of 1 to {_MAX_OPTIONS} options, but got {got}.")
            return None

        # A name of its own; a choice inside a second one of a name (`rank_2`) begins with that name.
        if key == "optional":
            name = f"{name}.on" if name else "on"
        name = name or key
        n = self.counts.get(name, 0) + 1
        while (unique := name if n == 1 else f"{name}_{n}") in self.names:
            n += 1
        self.counts[name] = n
        self.names.add(unique)
        kind: ParameterKind = "int" if key == "int" else "float" if key == "float" else "categorical"
        slot = Slot(unique, kind, per_layer)
        self.templates.slots.append(slot)

        if key == "optional":
            slot.options = {True: Const(True), False: Const(False)}
        elif key == "choice":
            plain = set[Any]()
            for i, option in enumerate(inside):
                label, structured = _label(option), isinstance(option, dict)
                if not isinstance(option, (dict, list)):
                    if label in plain:
                        self.problems.add((*place, i), f"{option!r} is offered twice; keep one of them.")
                    plain.add(label)
                if label in slot.options:
                    label = f"{label}#{i + 1}"
                below = _item_name(option) if item and structured else slot.name
                node = self.node(option, (*place, i), below, item=item)
                slot.options[label] = Const(ABSENT) if item and option is None else node
            slot.numeric = all(
                isinstance(node, Hidden) or (isinstance(node, Const) and _is_finite(node.value))
                for node in slot.options.values()
            )
        else:
            log, steps = tree.get("log", False), tree.get("steps")
            if not isinstance(log, bool):
                self.problems.add((*path, "log"), f"'log' is true or false, but got {log!r}.")
            if "steps" in tree and not (log is True and type(steps) is int and steps > 0):
                self.problems.add(
                    (*path, "steps"),
                    f"'steps' is a whole number above 0, of a logarithmic range, but got {steps!r:.80}.",
                )
            if not isinstance(inside, list) or len(inside) != 2:
                self.problems.add(place, f"{key!r} takes [low, high], but got {inside!r:.80}.")
                return None
            slot.log, slot.steps = log is True, steps
            slot.low, slot.high = (
                Last() if v == "last" else self.node(v, (*place, i), "", item=False)
                for i, v in enumerate(inside)
            )
            ends = [fill(end, _WIDEST) for end in (slot.low, slot.high) if isinstance(end, _PLAIN)]
            if len(ends) < 2 or not all(type(v) is int if key == "int" else _is_finite(v) for v in ends):
                numbers = "whole numbers, 'last' or 'hidden/n'" if key == "int" else "finite numbers"
                self.problems.add(place, f"{key!r} takes two {numbers}, but got {list(inside)!r:.80}.")
            elif isinstance(slot.low, Const) and isinstance(slot.high, Const) and ends[0] > ends[1]:
                self.problems.add(place, f"{list(inside)!r} runs backwards; write [{ends[1]}, {ends[0]}].")
            elif log is True and ends[0] <= 0:
                self.problems.add(place, f"a logarithmic range starts above 0, but got {list(inside)!r}.")
        return slot if len(self.problems.found) == found else None


def _form_of(tree: Any) -> str | None:
    """Which choice a mapping is: `scaled` (a number that is scaled with a size) or one of `_CHOICES`; `None`
    where it is none."""
    return next((k for k in ("scaled", *_CHOICES) if k in tree), None) if isinstance(tree, dict) else None


def _item_name(tree: Any) -> str:
    """The prefix of names of choices inside an item: its alias, its variable, else its method."""
    if isinstance(tree, str):
        return tree.removeprefix("$")
    form = _form_of(tree)
    if form == "optional":
        return _item_name(tree["optional"])
    if not isinstance(tree, dict) or form not in (None, "scaled"):
        return "method"
    alias = tree.get("as")
    return alias if isinstance(alias, str) else next((str(k) for k in tree if k not in BESIDE), "method")


def _label(option: Any) -> Any:
    """The parameter's value for an option: the option where it is a scalar, else a word."""
    if isinstance(option, list):
        return "+".join(str(_label(v)) for v in option) or "none"
    if isinstance(option, dict):
        start, acts = option.get("from"), "frozen from" if option.get("frozen") is True else "from"
        return f"{_item_name(option)} {acts} {start}" if isinstance(start, str) else _item_name(option)
    return option


def _bounds(node: Node) -> list[Any]:
    """The values of a node, for a range of whole numbers its ends; `None` for a node that is no value."""
    if isinstance(node, Ref) and node.slot.kind == "categorical":
        return [value for option in options_of(node) for value in _bounds(option)]
    if isinstance(node, Scaled):
        return [value for part in (node.number, node.size) for value in _bounds(part)]
    if isinstance(node, Ref):
        ends = () if node.slot.kind == "float" else (node.slot.low, node.slot.high)
        return [fill(end, _WIDEST) for end in ends]
    return [fill(node, _WIDEST)] if isinstance(node, _PLAIN) else [None]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_templates(templates: Templates, problems: Problems) -> None:
    """Read each item and the training section with every option once, and add what is wrong to `problems`.

    Raises:
        RecipeError: there is too much to try, or too much is wrong.
    """
    reader = _Reader(problems)
    for template in [*(item for block in templates.blocks for item in block.items), *templates.model]:
        reader.item(template.node, template.path, template.level)
    check_starts({repr(found): found for found in reader.named}.values(), templates.inputs, problems)
    for one in templates.blocks:
        where = (one.of, one.start, one.switch, one.stack)
        if one.each_layer or any(slots_of(node) for node in where if node is not None):
            for template in one.items:
                if has_start(template.node):
                    problems.add(
                        template.path,
                        "what starts from an input keeps the layers that it was trained in, but this block "
                        "chooses its layers; list it in a block of its own, with 'attach' and one 'at'.",
                    )
    if problems.found:
        return

    # Names, in the recipe of the largest choices.
    blocks, places, model = [], [], tuple[Item, ...]()
    for block in (*templates.blocks, None):
        items = []
        for template in templates.model if block is None else block.items:
            values = _usual_values(template.node)
            tree = prune(fill(template.node, replace(_USUAL, values=values)), None, None)
            if tree is not ABSENT:
                items.append(read_item(tree, (), template.level, problems.inside(tree, template.path)))
        there = tuple(item for item in items if item is not None)
        if block is None:
            model = there
        elif there:
            blocks.append(LayerBlock(attach=there))
            places.append(block.path)
    check_names(places, {"layers": tuple(blocks), "model": model}, problems)

    for chosen in reader.choices(templates.training, ("training",)):
        tree = {"training": fill(templates.training, replace(_USUAL, values=chosen))}
        found = problems.inside(tree, ())
        section = read_training(tree, found)
        check_groups(section.groups, reader.named, found)


@dataclass
class _Reader:
    """Reads items with every option that they offer.

    Attributes:
        named: each entry that was read, with its alias or method.
        read: values that were read so far.
    """

    problems: Problems
    named: list[tuple[str, EntryItem]] = field(default_factory=list)
    read: int = 0

    def item(self, node: Node, path: Path, level: str) -> None:
        """Read every item that a node can become. The children of compositions are read one by one."""
        if isinstance(node, Optional):
            self.item(node.node, path, level)
            return
        if isinstance(node, Ref) and node.slot.kind == "categorical":
            for option in node.slot.options.values():
                self.item(option, path, level)
            return

        usual: Values = {}
        varied: Node = node
        names = [name for name in node.nodes if name not in BESIDE] if isinstance(node, Mapped) else []
        if isinstance(node, Mapped) and len(names) == 1 and is_composition(names[0]):
            inside: Path = (names[0],)
            body = node.nodes[names[0]]
            own: dict[str, Node] = {}
            if isinstance(body, Mapped):
                inside, own = (*inside, "children"), {k: v for k, v in body.nodes.items() if k != "children"}
                body = body.nodes.get("children", Const(None))
            children = body.nodes if isinstance(body, Listed) else getattr(body, "value", None)
            if children in ((), []):  # written without children; one that may be left without any is another
                tree = fill(node, _USUAL)
                read_item(tree, (), level, self.problems.inside(tree, path))
                return
            if isinstance(body, Listed):
                for i, child in enumerate(body.nodes):
                    self.item(child, (*path, *inside, i), level)
                usual, varied = _usual_values(node), Mapped(own)

        for values in self.choices(varied, path):
            tree = prune(fill(node, replace(_USUAL, values={**usual, **values})), None, None)
            item = None if tree is ABSENT else read_item(tree, (), level, self.problems.inside(tree, path))
            entries = [] if item is None else [entry for _, entry in entry_items((item,))]
            self.named += [(entry.alias or entry.method, entry) for entry in entries]

    def choices(self, node: Node, path: Path) -> Iterator[Values]:
        """Values that together take every option of every slot wherever it is used, one at a time.

        Raises:
            RecipeError: there are too many.
        """
        size = size_of(node)
        for values in each_option(node):
            self.read += size
            if self.read > _MOST_READ:
                self.problems.add(path, "there is too much to choose from; offer fewer options in one place.")
                self.problems.check()
            yield values


def each_option(node: Node) -> Iterator[Values]:
    """Values that together take every option of every slot of a template, one at a time."""
    usual = _usual_values(node)
    yield usual
    yield from _varied(node, usual)


def _usual_values(node: Node) -> dict[str, Any]:
    """For each slot a value that leaves nothing out: the last that is neither zero, false nor absent."""
    found: dict[str, Any] = {}
    for slot in dict.fromkeys(slots_of(node)):
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
    """The values of a slot that are tried: all options, or both ends of a range."""
    if slot.kind == "categorical":
        return list(slot.options)
    return [fill(slot.low, _USUAL), fill(slot.high, _USUAL)]

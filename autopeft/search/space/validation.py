"""Checks of a compiled space before any backbone is known: every option is one that a recipe may have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from autopeft.composition import is_composition
from autopeft.method import get_method
from autopeft.recipe import EntryItem, Item, LayerBlock
from autopeft.recipe.models import entry_items
from autopeft.recipe.names import check_group_names, check_names
from autopeft.recipe.parse import read_item, read_training
from autopeft.recipe.problems import Path, Problems
from autopeft.search.space.compiler import ItemTemplate, Templates
from autopeft.search.space.expressions import (
    ABSENT,
    Const,
    Context,
    Listed,
    Mapped,
    Node,
    Optional,
    Ref,
    Scaled,
    Slot,
    size_of,
)
from autopeft.search.space.simplify import is_zero, prune

__all__ = ["check_templates"]

_HIDDEN, _LAST = 768, 11
_MOST_READ = 300_000
"""Values that are read while options are tried, over all of a space."""

Values = Mapping[str, Any]


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
    _check_aliases(templates, problems)
    for values in reader.choices(templates.training, ("training",)):
        tree = {"training": templates.training.fill(_context(values))}
        found = problems.inside(tree, ())
        section = read_training(tree, found)
        check_group_names(section.groups, reader.named, found)


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
        """Read what a node may become. The children of compositions are read one by one."""
        if isinstance(node, Optional):
            self.item(node.node, path, level)
        elif isinstance(node, Ref) and node.slot.kind == "categorical":
            for option in node.slot.options.values():
                self.item(option, path, level)
        elif isinstance(node, Mapped) and (name := _composition_of(node)) is not None:
            self._composition(node, name, path, level)
        else:
            for values in self.choices(node, path):
                self._one(node, values, path, level)

    def _composition(self, node: Mapped, name: str, path: Path, level: str) -> None:
        body = node.nodes[name]
        inside: Path = (name,)
        own: dict[str, Node] = {}
        if isinstance(body, Mapped):
            inside, own = (name, "children"), {k: v for k, v in body.nodes.items() if k != "children"}
            body = body.nodes.get("children", Const(None))
        if _is_empty(body):
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


def _is_empty(children: Node) -> bool:
    """Whether a composition is written without children; one that may be left without any is another."""
    return (isinstance(children, Listed) and not children.nodes) or (
        isinstance(children, Const) and children.value == []
    )


def _composition_of(node: Mapped) -> str | None:
    names = [name for name in node.nodes if name != "as"]
    return names[0] if len(names) == 1 and is_composition(names[0]) else None


def _check_aliases(templates: Templates, problems: Problems) -> None:
    blocks, places = [], []
    for block in templates.blocks:
        items = _firsts(block.items, problems)
        if items:
            blocks.append(LayerBlock(attach=items))
            places.append(block.path)
    fields = {"layers": tuple(blocks), "model": _firsts(templates.model, problems)}
    check_names(places, fields, problems)


def _firsts(templates: Iterable[ItemTemplate], problems: Problems) -> tuple[Item, ...]:
    """What items are with their largest choices."""
    found = []
    for template in templates:
        tree = prune(template.node.fill(_context(_usual_values(template.node))), None, None)
        if tree is not ABSENT:
            found.append(read_item(tree, (), template.level, problems.inside(tree, template.path)))
    return tuple(item for item in found if item is not None)


def _context(values: Values) -> Context:
    return Context(values, _HIDDEN, _LAST, 0)


def _usual_values(node: Node) -> dict[str, Any]:
    return {slot.parameter(0): _usual(slot) for slot in dict.fromkeys(node.slots())}


def _varied(node: Node, values: Values) -> Iterator[Values]:
    """Values with one option after another, set so that what is below each option takes effect."""
    if isinstance(node, (Mapped, Listed)):
        for inner in node.nodes.values() if isinstance(node, Mapped) else node.nodes:
            yield from _varied(inner, values)
    elif isinstance(node, Scaled):
        # Both ends of both together: what lies between them lies between the numbers that these make.
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
    context = Context({}, _HIDDEN, _LAST)
    return [slot.low.fill(context), slot.high.fill(context)]


def _usual(slot: Slot) -> Any:
    """A value that leaves nothing out: the last that is neither zero, false nor absent."""
    values = _extremes(slot)
    for value in reversed(values):
        option = slot.options.get(value)
        if option is None or not isinstance(option, Const):
            if not is_zero(value):
                return value
        elif option.value is not ABSENT and option.value is not False and not is_zero(option.value):
            return value
    return values[-1]

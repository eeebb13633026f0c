"""Checks of a compiled space before any backbone is known: every option is one that a recipe may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autopeft.recipe import EntryItem, Item, LayerBlock
from autopeft.recipe.models import entry_items
from autopeft.recipe.names import check_group_names, check_names
from autopeft.recipe.parse import read_item, read_training
from autopeft.recipe.problems import Path, Problem, Problems, line_of
from autopeft.search.space.compiler import ItemTemplate, Templates
from autopeft.search.space.expressions import ABSENT, Const, Context, Mapped, Node, Slot
from autopeft.search.space.simplify import is_zero, prune

__all__ = ["check_templates"]

_HIDDEN, _LAST = 768, 11


def check_templates(templates: Templates, problems: Problems) -> None:
    """Read each item and the training section with every option once, and add what is wrong to `problems`."""
    named: list[tuple[str, EntryItem]] = []
    firsts: dict[ItemTemplate, Item] = {}
    for template in [*(item for block in templates.blocks for item in block.items), *templates.model]:
        for item in _items(template, problems):
            firsts.setdefault(template, item)
            for _, entry in entry_items((item,)):
                named.append((entry.alias or entry.method, entry))
    if problems.found:
        return
    _check_aliases(templates, firsts, problems)
    for context in _contexts(templates.training):
        tree = {"training": templates.training.fill(context)}
        found = Problems(tree, problems.source)
        section = read_training(tree, found)
        check_group_names(section.groups, named, found)
        _move(found, (), problems)


def _items(template: ItemTemplate, problems: Problems) -> Iterator[Item]:
    """The items that a template becomes; the first is the one of the largest choices."""
    for context in _contexts(template.node):
        tree = prune(template.node.fill(context), None, None)
        if tree is ABSENT:
            continue
        found = Problems(tree, problems.source)
        item = read_item(tree, (), template.level, found)
        _move(found, template.path, problems)
        if item is not None:
            yield item


def _move(found: Problems, path: Path, problems: Problems) -> None:
    for p in found.found:
        line = p.line or line_of(problems.tree, (*path, *p.path))
        problems.found.append(Problem((*path, *p.path), p.message, line))


def _check_aliases(templates: Templates, firsts: dict[ItemTemplate, Item], problems: Problems) -> None:
    blocks, places = [], []
    for block in templates.blocks:
        items = tuple(firsts[item] for item in block.items if item in firsts)
        if items:
            blocks.append(LayerBlock(attach=items))
            places.append(block.path)
    model = tuple(firsts[item] for item in templates.model if item in firsts)
    check_names(places, {"layers": tuple(blocks), "model": model}, problems)


def _contexts(node: Node) -> Iterator[Context]:
    """Values that together take every option of every slot at least once, inside every structure on offer."""
    slots = list(dict.fromkeys(node.slots()))
    base = {slot.parameter(0): _usual(slot) for slot in slots}
    bases = [base]
    for slot in slots:
        if any(isinstance(option, Mapped) for option in slot.options.values()):
            bases += [{**base, slot.parameter(0): value} for value in slot.options]
    for values in bases:
        yield Context(values, _HIDDEN, _LAST, 0)
        for slot in slots:
            for value in _extremes(slot):
                yield Context({**values, slot.parameter(0): value}, _HIDDEN, _LAST, 0)


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

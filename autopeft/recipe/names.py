"""The names of a recipe's entries, and what in a file refers to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from autopeft.composition import is_composition
from autopeft.errors import near
from autopeft.method import get_method, method_names, no_such_part, part_names
from autopeft.recipe.models import CompositionItem, EntryItem, Item, LayerBlock, entry_items
from autopeft.recipe.problems import Path, Problems
from autopeft.recipe.training import HEAD_PARTS, address

__all__ = [
    "check_groups",
    "check_names",
    "named_entries",
    "parts_named",
]

_MODULES = nn.ModuleDict()
"""Entries become modules in one of these: what it has as an attribute can name none of them."""
_BESIDE = ("recipe", "spec")
"""Names of a hybrid's own attributes beside its entries' modules (`autopeft.hybrid.modules.Root`)."""


def check_names(places: list[Path], fields: dict[str, Any], problems: Problems) -> None:
    """Report aliases that collide, or that would be mistaken for something else."""
    seen: set[str] = set()
    automatic = {
        name for name, item in named_entries(fields["layers"], fields["model"]) if item.alias is None
    }
    # Every item with its place, in file order: a composition, then its children.
    left: list[tuple[Path, Item]] = []
    for block, place in zip(fields["layers"], places, strict=False):
        left += [((*place, i), item) for i, item in enumerate(block.attach)]
    left += [(("model", i), item) for i, item in enumerate(fields["model"])]
    while left:
        place, item = left.pop(0)
        if isinstance(item, CompositionItem):
            left[:0] = [((*place, item.kind, i), child) for i, child in enumerate(item.children)]
        alias, path = item.alias, (*place, "as")
        if alias is None:
            continue
        if alias in seen or alias in automatic:
            problems.add(path, f"the name {alias!r} is taken by another entry; choose another after 'as:'.")
        elif alias in ("head", *_BESIDE) or is_composition(alias) or alias in method_names():
            problems.add(path, f"{alias!r} already means something else; choose another name after 'as:'.")
        elif hasattr(_MODULES, alias):
            problems.add(path, f"{alias!r} is a name that torch uses itself; choose another after 'as:'.")
        seen.add(alias)


def named_entries(blocks: Iterable[LayerBlock], model: tuple[Item, ...]) -> list[tuple[str, EntryItem]]:
    """Entries in file order with their names: the alias, or the method, then `method_2`, `method_3`, …"""
    counts: dict[str, int] = {}
    named = []
    groups = [*(block.attach for block in blocks), model]
    for _, item in (pair for items in groups for pair in entry_items(items)):
        if item.alias is not None:
            named.append((item.alias, item))
            continue
        counts[item.method] = counts.get(item.method, 0) + 1
        n = counts[item.method]
        named.append((item.method if n == 1 else f"{item.method}_{n}", item))
    return named


Parts = Mapping[str, tuple[str, ...] | None]
"""The parts of what has a name; `None` where they are known only once its module is built."""


def parts_named(groups: Iterable[str], named: Iterable[tuple[str, EntryItem]]) -> Parts:
    """The parts of all that these groups may be named after: of the head, and of the entries where a group is
    of a part of one. Reading an entry's parts builds its method, which takes long where it is not needed."""
    found: dict[str, tuple[str, ...] | None] = {"head": HEAD_PARTS}
    if any("." in group and address(group)[0] != "head" for group in groups):
        for name, item in named:
            own = part_names(get_method(item.method)(item.method_config()))
            for key in {name, item.method}:  # a method's name stands for all its entries
                before = found.get(key, ())
                unknown = own is None or before is None
                found[key] = None if unknown else tuple(dict.fromkeys((*(before or ()), *(own or ()))))
    return found


def check_groups(groups: Iterable[str], named: Iterable[tuple[str, EntryItem]], problems: Problems) -> None:
    """Report groups of the training section that name neither one of these entries nor a method of one, nor
    the head, nor a part of these."""
    named = list(named)
    owners = {"head", *(name for name, _ in named), *(item.method for _, item in named)}
    parts = parts_named(groups, named)
    for group in groups:
        name, part = address(group)
        path: Path = ("training", "groups", group)
        if name not in owners:
            known = ", ".join(sorted(owners))
            problems.add(path, f"no entry is called {name!r}.{near(name, owners)} There are: {known}.")
        elif "." in group:
            there = parts[name]
            if there is not None and part not in there:
                problems.add(path, no_such_part(name, part, there))

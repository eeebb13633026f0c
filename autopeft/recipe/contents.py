"""A recipe in short: its methods, a name made of them, and a line for each item."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from autopeft.method import get_method, method_names
from autopeft.recipe.models import CompositionItem, EntryItem, Item, LayerBlock

__all__ = ["in_brief", "item_text", "name_from", "placed_items"]

LONGEST = 40
_DIGITS = 6
_OTHER = re.compile(r"[^A-Za-z0-9_]+")


def in_brief(methods: Collection[str]) -> str:
    """Methods on one line, `lora + ia3`; where none of them trains anything, `head only` is in front."""
    trained = [name for name in methods if name not in method_names() or not get_method(name).traits.pools]
    return ("" if trained else "head only" + ", " * bool(methods)) + " + ".join(methods)


def name_from(blocks: Iterable[LayerBlock], model: Sequence[Item], digest: str) -> str:
    """A name for a recipe that nobody has named: `lora+gate-ia3-ssf-5c1e9a`.

    What stands in the recipe, in file order and each once, is joined by `+`: a method by its name, a
    composition by its kind and its children, joined by `-`. Where that takes more than 40 characters,
    compositions are named by their kind alone, then the last items are counted (`+2_more`). The first six
    digits of `digest` follow, so that recipes of the same methods have names of their own. A recipe without
    entries is `head-only`. Letters, digits, `_`, `+` and `-` are all that is in it.

    Args:
        digest: the recipe's hash.
    """
    items = [*(item for block in blocks for item in block.attach), *model]
    parts = list(dict.fromkeys(_words(item) for item in items))
    if len("+".join(parts)) > LONGEST:
        kinds = (item.kind if isinstance(item, CompositionItem) else item.method for item in items)
        parts = list(dict.fromkeys(_OTHER.sub("_", kind) for kind in kinds))
    stem, kept = "+".join(parts), len(parts)
    while kept > 1 and len(stem) > LONGEST:
        kept -= 1
        stem = "+".join([*parts[:kept], f"{len(parts) - kept}_more"])
    return f"{stem[:LONGEST] or 'head-only'}-{digest[:_DIGITS]}"


def _words(item: Item) -> str:
    """An item's method, or the kind and the children of a composition, without characters that mean something
    in a recipe's name or a file's."""
    if isinstance(item, EntryItem):
        return _OTHER.sub("_", item.method)
    return "-".join([_OTHER.sub("_", item.kind), *dict.fromkeys(map(_words, item.children))])


def item_text(item: Item) -> str:
    """An item on one line: `lora (sites q, v, rank 8)`, `gate of lora (rank 4) and ia3`."""
    if isinstance(item, EntryItem):
        settings = ", ".join(f"{key} {_value(value)}" for key, value in item.config.items())
        text = f"{item.method} ({settings})" if settings else item.method
    else:
        text = f"{item.kind} of {' and '.join(map(item_text, item.children))}"
    return text if item.alias is None else f"{text} as {item.alias}"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def placed_items(blocks: Iterable[LayerBlock], model: Sequence[Item]) -> Iterator[tuple[str, str]]:
    """The place of each item, and the item on one line, in file order."""
    for block in blocks:
        at = block.at if isinstance(block.at, str) else ", ".join(map(str, block.at))
        where = f"layers {at}" if block.stack == "all" else f"{block.stack} layers {at}"
        yield from ((where, item_text(item)) for item in block.attach)
    yield from (("whole model", item_text(item)) for item in model)

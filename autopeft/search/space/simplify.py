"""What is left of a filled template: items of zero size are absent, as are sites that a backbone lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from autopeft.composition import is_composition
from autopeft.method import get_method, method_names
from autopeft.recipe import CompositionItem, Item, LayerBlock
from autopeft.recipe.layers import At
from autopeft.recipe.names import named_entries, parts_named
from autopeft.recipe.problems import MarkedDict, copy_lines
from autopeft.recipe.training import HEAD_PARTS, address
from autopeft.search.space.expressions import ABSENT
from autopeft.spec import SITE_NAMES, BackboneSpec

__all__ = [
    "blocks_of",
    "drop_groups",
    "drop_head_parts",
    "is_zero",
    "number_alias",
    "prune",
    "size_field",
]

_PLACED = r"(?=.)(_\d+)?(_encoder|_decoder)?"
"""What may stand behind an alias: the layer and the stack that it was drawn for."""
_SIZES = ("rank", "bottleneck", "length", "keep")


def size_field(method: type[Any]) -> str | None:
    """The config key of a method's size: its `size_field`, else rank, bottleneck, length or keep."""
    named = getattr(method, "size_field", None)
    if isinstance(named, str):
        return named
    return next((key for key in _SIZES if key in method.Config.model_fields), None)


def is_zero(value: Any) -> bool:
    """Whether a size is zero: `0`, `0.0`, `"0"` or `"0%"`."""
    if isinstance(value, bool):
        return False
    if isinstance(value, str):
        return re.fullmatch(r"\s*0+(\.0*)?\s*[%kKmM]?\s*", value) is not None
    return isinstance(value, (int, float)) and value == 0


def prune(tree: Any, spec: BackboneSpec | None, stacks: Sequence[str] | None) -> Any:
    """An item's data without what is absent, or `ABSENT`.

    `stacks` are those that the item's block covers, `None` for an item of the model. Without a spec only zero
    sizes count. Data that is no item is left as it is, for the reader of recipes to refuse.
    """
    if tree is ABSENT:
        return ABSENT
    if isinstance(tree, str):
        return _prune_entry(tree, {}, tree, spec, stacks)
    names = [key for key in tree if key != "as"] if isinstance(tree, dict) else []
    if len(names) != 1:
        return tree
    name, body = names[0], tree[names[0]]
    if is_composition(name):
        return _prune_composition(name, body, tree, spec, stacks)
    return _prune_entry(name, body or {}, tree, spec, stacks) if isinstance(body or {}, dict) else tree


def _prune_composition(
    name: str, body: Any, tree: dict[str, Any], spec: BackboneSpec | None, stacks: Sequence[str] | None
) -> Any:
    children = body.get("children") if isinstance(body, dict) else body
    if not isinstance(children, list):
        return tree
    left = [child for c in children if (child := prune(c, spec, stacks)) is not ABSENT]
    if not left:
        return ABSENT
    inner = copy_lines(body, MarkedDict({**body, "children": left})) if isinstance(body, dict) else left
    return copy_lines(tree, MarkedDict({**tree, name: inner}))


def _prune_entry(
    name: str, config: dict[str, Any], tree: Any, spec: BackboneSpec | None, stacks: Sequence[str] | None
) -> Any:
    if name not in method_names():
        return tree
    method = get_method(name)
    field = size_field(method)
    if field is not None and is_zero(config.get(field)):
        return ABSENT
    if spec is None:
        return tree
    sites = config.get("sites")
    if not isinstance(sites, (list, tuple)):
        return tree
    have = spec.site_names(stacks)
    left = [site for site in sites if site in have or site not in SITE_NAMES]
    if not left and sites:
        return ABSENT
    inner = copy_lines(config, MarkedDict({**config, "sites": left}))
    return copy_lines(tree, MarkedDict({**tree, name: inner}))


def number_alias(tree: Any, layer: int) -> Any:
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
                inner = [number_alias(child, layer) for child in children]
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
    """The training section without groups of absent entries and parts; an alias that is drawn for each layer,
    or stands in each stack, names all of them."""
    if not isinstance(training, dict) or not isinstance(training.get("groups"), dict):
        return training
    entries = named_entries(layers, model)
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

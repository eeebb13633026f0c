"""Counts and hashes a recipe the long way: a scan of the spec for each entry, nothing remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from autopeft.composition import ChildSpec, get_composition, input_width
from autopeft.counting import Measure
from autopeft.method import ParameterCount, get_method
from autopeft.recipe import EntryItem, Item, Recipe, resolve_layers
from autopeft.recipe.format_1 import canonical_config
from autopeft.spec import BackboneSpec, Site


def reference(recipe: Recipe, spec: BackboneSpec) -> Measure:
    """What `count` and `hash` should say of a recipe that works."""
    found = []
    for block in recipe.layers:
        layers = {
            (s.name, i)
            for s in spec.stacks
            if block.stack in ("all", s.name)
            for i in resolve_layers(block.at, s.layers)
        }
        inside = [s for s in spec.sites if s.layer is not None and (s.stack, s.layer) in layers]
        found += [_read(item, inside, spec) for item in block.attach]
    found += [_read(item, spec.sites, spec) for item in recipe.model]
    total = sum((count for count, _, _ in found), ParameterCount(0, 0))
    text = _json(sorted((tree for _, tree, _ in found), key=_json))
    return Measure(total.deployed, total.trained, hashlib.sha256(text.encode()).hexdigest())


def _read(
    item: Item, candidates: Sequence[Site], spec: BackboneSpec
) -> tuple[ParameterCount, dict[str, Any], list[Site]]:
    if isinstance(item, EntryItem):
        return _entry(item, candidates, spec)
    children = [_read(child, candidates, spec) for child in item.children]
    specs = [
        ChildSpec("", "", frozenset(), tuple(sites), fed=_fed(child), part_size=_part_size(child))
        for child, (_, _, sites) in zip(item.children, children, strict=True)
    ]
    own = get_composition(item.kind).parameter_count(specs, dict(item.options))
    trees = [tree for _, tree, _ in children]
    if item.kind != "chain":
        trees.sort(key=_json)
    tree = {"composition": item.kind, "options": item.options, "children": trees}
    sites = list(dict.fromkeys(s for _, _, inner in children for s in inner))
    return sum((count for count, _, _ in children), own), tree, sites


def _fed(item: Item) -> Callable[[Site], int]:
    """The width of what a child reads at a site."""
    return getattr(_method(item), "fed_width", input_width)


def _part_size(item: Item) -> Callable[[Site, str], int | None] | None:
    """How large a child's parts are at a site."""
    return getattr(_method(item), "part_size", None)


def _method(item: Item) -> Any:
    return get_method(item.method)(item.method_config()) if isinstance(item, EntryItem) else None


def _entry(
    item: EntryItem, candidates: Sequence[Site], spec: BackboneSpec
) -> tuple[ParameterCount, dict[str, Any], list[Site]]:
    method = get_method(item.method)(item.method_config())
    names = method.config.sites
    if names is None:
        names = getattr(method, "default_sites", method.traits.default_sites)
    of_model = method.traits.also_in_layers and candidates is spec.sites
    sites = [s for s in candidates if s.name in names and not of_model] if method.traits.sites else []
    if method.traits.changes_length:
        sites = [s for s in sites if s.name != "embeddings" or s.stack == spec.stacks[0].name]
    if hasattr(method, "among"):
        sites = list(method.among(sites, spec))
    config = canonical_config(item.method, method.config)
    del config["sites"]
    tree = {"method": item.method, "config": config, "sites": sorted(s.key for s in sites)}
    return method.parameter_count(sites, spec), tree, sites


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))

"""A recipe in which what data have settled is written out, as a search can begin with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from autopeft.errors import UsageError
from autopeft.hybrid.hybrid import Hybrid
from autopeft.method import Placement, Settles
from autopeft.recipe import Recipe
from autopeft.recipe.training import address
from autopeft.spec import SITE_NAMES, BackboneSpec

__all__ = ["ExplicitRecipe", "explicit_recipe"]


class ExplicitRecipe(NamedTuple):
    """The recipe, and what of the hybrid it leaves out, in words."""

    recipe: Recipe
    left: tuple[str, ...]


def explicit_recipe(hybrid: Hybrid) -> ExplicitRecipe:
    """Write out what calibration or training has settled in a hybrid: which ranks, and which modules where.

    An entry whose module says it (see `autopeft.method.Settles`) gives way to plain ones, all others stay.
    What the training section says of the entry goes over to those in its place, of its parts nothing does.
    The plain entries start anew when they are trained.

    Raises:
        UsageError: calibration is still to come, no entry settles anything, or one that does stands in a
            composition.
    """
    if hybrid.needs_prepare:
        raise UsageError(
            "This hybrid is not calibrated yet, so that nothing is settled in it; train it first."
        )
    settled = {name: module for name, module in hybrid.modules.items() if isinstance(module, Settles)}
    if not settled:
        raise UsageError(
            f"No method of {hybrid.recipe.name!r} settles ranks or places by data, so that its own recipe "
            "says all there is to say."
        )
    found = {name: module.explicit(hybrid.graph.entries[name].sites) for name, module in settled.items()}
    data = hybrid.recipe.to_dict()
    gone: dict[int | None, set[int]] = {}  # positions of the entries that give way, by block
    for entry in hybrid.recipe.entries():
        if entry.name in found:
            if len(entry.path) > 1:
                raise UsageError(
                    f"{entry.name} stands in a composition, where several entries cannot take its place; "
                    "list it beside others."
                )
            gone.setdefault(entry.block, set()).add(entry.path[0])
    for i, block in enumerate(data.get("layers", ())):
        block["attach"] = [item for n, item in enumerate(block["attach"]) if n not in gone.get(i, ())]
    data["model"] = [item for n, item in enumerate(data.get("model", ())) if n not in gone.get(None, ())]
    placements = [place for explicit in found.values() for place in explicit.placements]
    blocks = _blocks(placements, hybrid.spec)
    data["layers"] = [*(block for block in data.get("layers", ()) if block["attach"]), *blocks]
    data["name"] = f"{hybrid.recipe.name}-explicit"
    left = [f"{name}: {note}" for name, explicit in found.items() for note in explicit.left]
    instead = {name: [place.method for place in explicit.placements] for name, explicit in found.items()}
    left += _move_groups(data, hybrid.recipe, instead)
    return ExplicitRecipe(Recipe.from_dict(data), tuple(left))


def _blocks(placements: Iterable[Placement], spec: BackboneSpec) -> list[dict[str, Any]]:
    """Layer blocks that say these placements: layers that have the same ones share a block."""
    layers: dict[tuple[str, int], dict[str, list[str]]] = {}
    for place in placements:
        kind = json.dumps([place.method, place.listed, dict(place.options)], sort_keys=True)
        layers.setdefault((place.stack, place.layer), {}).setdefault(kind, []).append(place.site)
    alike: dict[str, list[tuple[str, int]]] = {}
    for (stack, layer), kinds in sorted(layers.items()):
        named = {kind: sorted(sites, key=SITE_NAMES.index) for kind, sites in sorted(kinds.items())}
        alike.setdefault(json.dumps([stack, named]), []).append((stack, layer))
    blocks = []
    for text, where in alike.items():
        items = []
        for kind, sites in json.loads(text)[1].items():
            method, listed, options = json.loads(kind)
            items.append({method: {listed: sites, **options}})
        within = {"stack": where[0][0]} if len(spec.stacks) > 1 else {}
        blocks.append({"at": [layer for _, layer in where], **within, "attach": items})
    return blocks


def _move_groups(data: dict[str, Any], recipe: Recipe, replaced: Mapping[str, list[str]]) -> list[str]:
    """Give the training groups of replaced entries to the methods in their place.

    Args:
        replaced: by the name of each entry that is gone, the methods that take its place.

    Returns:
        The settings that are lost, in words.
    """
    groups: dict[str, Any] = data.get("training", {}).get("groups", {})
    methods = {entry.name: entry.method for entry in recipe.entries()}
    staying = {
        n for entry in recipe.entries() if entry.name not in replaced for n in (entry.name, entry.method)
    }
    lost = []
    for group in list(groups):
        name, part = address(group)
        if name in staying or not any(name in (gone, methods[gone]) for gone in replaced):
            continue
        settings = groups.pop(group)
        if part:
            lost.append(f"the settings of {group}")
            continue
        for gone, instead in replaced.items():
            if name in (gone, methods[gone]):
                for method in instead:  # a group of a method addresses all of its entries
                    if method in staying or groups.setdefault(method, settings) != settings:
                        lost.append(f"the settings of {group} for {method}, of which there are others")
    return lost

"""A hybrid of several tasks, written out for one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from autopeft.composition import TaskRoute, is_composition
from autopeft.errors import UsageError, near
from autopeft.graph import CompositionGraph, Node, Tree, build_graph
from autopeft.hybrid.hybrid import Hybrid
from autopeft.hybrid.modules import build_modules, deployed_modules
from autopeft.method import WritesOut, WrittenOut, method_names
from autopeft.nn import ScaledPairs
from autopeft.recipe import EntryItem, Item, Recipe

__all__ = ["of_task"]


def of_task(hybrid: Hybrid, task: str) -> tuple[CompositionGraph, dict[str, nn.Module]]:
    """What a hybrid does for the rows of one of its tasks, as a graph that knows no tasks, and its modules by
    name, in deployed form. The hybrid stays as it is.

    Of a `switch` the task's child is left. LoRAs under a `task_route` become one, whose rank is the sum of
    theirs. What is generated for the task becomes a plain entry. All else is as it was, under its name.

    Raises:
        UsageError: it has no such task, or something in it cannot be written out.
    """
    if task not in hybrid.tasks:
        known = ", ".join(hybrid.tasks) or "none, as it acts alike on all"
        raise UsageError(f"There is no task {task!r} here.{near(task, hybrid.tasks)} Tasks: {known}.")
    number = hybrid.tasks.index(task)
    modules = deployed_modules(hybrid.modules)
    written: dict[str, WrittenOut] = {}
    named: dict[str, str] = {}  # what stands in the place of something, by the name of that
    trees = iter(hybrid.graph.trees)

    def instead(name: str, found: WrittenOut) -> EntryItem:
        named[name] = f"{name}_of_task"
        written[named[name]] = found
        return EntryItem(method=found.method, config=dict(found.options), alias=named[name])

    def plain(item: Item, tree: Tree, *, gated: bool = False) -> Item:
        if isinstance(item, EntryItem):
            module, entry = modules[tree.name], hybrid.graph.entries[tree.name]
            if not isinstance(module, WritesOut):
                left = {"alias": _alias(tree.name), "start": (), "merge": None, "frozen": False}
                return item.model_copy(update=left)
            return instead(tree.name, module.written_out(number, entry.sites))
        assert isinstance(tree, Node)
        if item.kind == "switch":
            child = tree.children[number]
            found = plain(item.children[number], child, gated=gated)
            named[tree.name] = named.get(child.name, child.name)
            return found
        if item.kind == "task_route":
            return instead(tree.name, _one_lora(hybrid, tree, modules, number, gated=gated))
        gated = gated or item.kind == "gate"
        pairs = zip(item.children, tree.children, strict=True)
        children = tuple(plain(*pair, gated=gated) for pair in pairs)
        return item.model_copy(update={"children": children, "alias": _alias(tree.name)})

    blocks = [
        block.model_copy(update={"attach": tuple(plain(item, next(trees)) for item in block.attach)})
        for block in hybrid.recipe.layers
    ]
    model = tuple(plain(item, next(trees)) for item in hybrid.recipe.model)
    # Groups of the training section address entries that may be gone.
    training = hybrid.recipe.training.model_copy(update={"groups": {}})
    told = {"layers": tuple(blocks), "model": model, "inputs": {}, "training": training}
    recipe = Recipe.from_dict(hybrid.recipe.model_copy(update=told).to_dict())
    graph = build_graph(recipe, hybrid.spec)
    found: dict[str, nn.Module] = {}
    for name, built in build_modules(graph).items():
        if name in written:
            built.load_state_dict({key: value.detach() for key, value in written[name].tensors.items()})
        elif name not in graph.entries:  # a composition knows its children by their names
            state = modules[name].state_dict()
            built.load_state_dict(
                {".".join(named.get(part, part) for part in key.split(".")): v for key, v in state.items()}
            )
        found[name] = built if name in written or name not in graph.entries else modules[name]
    return graph, found


def _alias(name: str) -> str | None:
    """A name as an alias; `None` where it is a method's or a composition's, which it gets without one."""
    return None if name in method_names() or is_composition(name) else name


@torch.no_grad()
def _one_lora(
    hybrid: Hybrid, tree: Node, modules: Mapping[str, nn.Module], task: int, *, gated: bool
) -> WrittenOut:
    """The LoRAs of a `task_route` as one: A of all of them, and B times its weight and, where no gate takes
    the place of that, its scale."""
    route = cast(TaskRoute, modules[tree.name])
    weights = route.weights()[task]
    pairs = {child.name: modules[child.name] for child in tree.children}
    sites = {s.key: s for name in pairs for s in getattr(hybrid.graph.entries.get(name), "sites", ())}
    if not all(isinstance(pair, ScaledPairs) for pair in pairs.values()):
        raise UsageError(
            f"{tree.name} mixes {', '.join(pairs)}, and only LoRAs can be written out as one; keep the "
            "hybrid whole."
        )
    tensors: dict[str, Tensor] = {}
    for key, site in sites.items():
        own = [
            (weight, *cast(ScaledPairs[Any], pair).as_lora(site))
            for weight, pair in zip(weights, pairs.values(), strict=True)
            if key in cast(ScaledPairs[Any], pair).at
        ]
        tensors[f"at.{key}.A"] = torch.cat([a for _, a, _, _ in own])
        tensors[f"at.{key}.B"] = torch.cat(
            [weight * (1 if gated else s) * b for weight, _, b, s in own], dim=1
        )
    ranks = {len(value) for name, value in tensors.items() if name.endswith(".A")}
    if len(ranks) != 1:
        raise UsageError(
            f"{tree.name} has LoRAs of different ranks at different sites; keep the hybrid whole."
        )
    (rank,) = ranks
    names = list(dict.fromkeys(site.name for site in sites.values()))
    return WrittenOut("lora", {"sites": names, "rank": rank, "alpha": float(rank)}, tensors)

"""The recipes that are compared, and how peft would say them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from autopeft.counting import Budget
from autopeft.graph import build_graph
from autopeft.recipe import Recipe
from autopeft.search.space.repair import Repaired, repair
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from lib.obvious import MODULES

__all__ = ["SPACE", "draw", "lowest_layer", "peft_words", "rate_of"]

# What `default.yaml` was when these were first measured; it grows, and peft has no words for what it gained.
SPACE = Path(__file__).parents[1] / "samplers" / "space.yaml"


def draw(
    count: int, budget: str, spec: BackboneSpec, *, seed: int = 0, space: Path = SPACE
) -> list[Repaired]:
    """The first `count` different recipes that a random walk through the space gives inside the budget."""
    rng = random.Random(seed)
    members, limits = Space.from_file(space).bind(spec), Budget.parse(budget)
    found: dict[str, Repaired] = {}
    while len(found) < count:
        drawn = repair(members, members.sample(rng), limits)
        found.setdefault(drawn.recipe.hash(), drawn)
    return list(found.values())


def lowest_layer(recipe: Recipe, spec: BackboneSpec) -> int:
    """k, the lowest layer that a recipe alters; what belongs to the whole model alters the embeddings: 0."""
    lowest = min(stack.layers for stack in spec.stacks)
    for entry in build_graph(recipe, spec).entries.values():
        if not entry.sites or any(site.layer is None for site in entry.sites):
            return 0
        lowest = min(lowest, *(site.layer for site in entry.sites if site.layer is not None))
    return lowest


def rate_of(recipe: Recipe, *names: str) -> float:
    """The learning rate of the first of the groups `names` that has one, else the recipe's own."""
    rates = (recipe.training.groups[name].learning_rate for name in names if name in recipe.training.groups)
    return next((rate for rate in rates if rate is not None), recipe.training.learning_rate)


def peft_words(recipe: Recipe, spec: BackboneSpec) -> dict[str, Any] | None:
    """A recipe as arguments of peft's configs, or `None` where peft has no words for it."""
    refs = recipe.entries()
    if spec.family not in MODULES or len(refs) != 1 or len(refs[0].path) > 1 or recipe.training.policies:
        return None
    (entry,) = build_graph(recipe, spec).entries.values()
    name, config = entry.method.name, entry.method.config
    layer, modules = MODULES[spec.family]
    if name == "prompt_tuning":
        return {"kind": name, "num_virtual_tokens": config.length}
    if name not in ("lora", "dora", "ia3") or any(site.name not in modules for site in entry.sites):
        return None
    targets = {site: f"{layer}.{site.layer}.{modules[site.name]}" for site in entry.sites}
    if name == "ia3":
        inputs = [path for site, path in targets.items() if site.name == "down"]
        return {"kind": name, "target_modules": list(targets.values()), "feedforward_modules": inputs}
    if getattr(config, "rank_stabilized", False):
        return None
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    return {
        "kind": "lora",
        "rank": config.rank,
        "alpha": alpha,
        "targets": list(targets.values()),
        "dropout": getattr(config, "dropout", 0.0),
        "dora": name == "dora",
    }

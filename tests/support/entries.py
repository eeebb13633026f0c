"""Methods that choose entries of the backbone while they train, and what such a training looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autopeft.hybrid import Hybrid, attach
from autopeft.nn import SearchedEntries, SparseDelta
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan
from autopeft.training.loop import train
from autopeft.training.result import TrainResult
from support.training import encoded_task, snapshot, tiny_bert

__all__ = ["PLAN", "Seen", "choose_by_lot", "differing", "flat", "recipe_of", "trained"]

PLAN = TrainingPlan(steps=8, batch_size=8, seed=3, device="cpu", shortcuts=False)


def recipe_of(method: str, *others: Any, training: dict[str, Any] | None = None, **config: Any) -> Recipe:
    """The method on the whole model, others in its layers."""
    body: dict[str, Any] = {"name": method, "model": [{method: config}]}
    if others:
        body["layers"] = [{"attach": list(others)}]
    body["training"] = {"learning_rate": 1e-2, "warmup": 0.0, **(training or {})}
    return Recipe.from_dict(body)


@dataclass
class Seen:
    """A training and what was there around each end of a search.

    Attributes:
        hybrid: still attached.
        module: of the method.
        start: every tensor of the model before the training.
        begun: every tensor of the model where each search begins.
        before, after: every tensor around the end of each, dense deltas among them.
        changes: what each search had made of each tensor.
        chosen: the index after each.
    """

    hybrid: Hybrid
    module: Any
    start: dict[str, Tensor]
    result: TrainResult | None = None
    begun: list[dict[str, Tensor]] = field(default_factory=list)
    before: list[dict[str, Tensor]] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    changes: list[dict[str, Tensor]] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)

    def merged(self) -> dict[str, Tensor]:
        """Every tensor of the model with the hybrid folded in."""
        return snapshot(self.hybrid.merge())


def trained(
    recipe: Recipe,
    *,
    plan: TrainingPlan = PLAN,
    look: Callable[[Any], None] | None = None,
    should_stop: Callable[[Seen], bool] | None = None,
    model: Any = None,
    seed: int = 0,
) -> Seen:
    """Train the recipe, which has the name of the entry that searches; `look` gets the module before each
    choice."""
    model = tiny_bert() if model is None else model
    hybrid = attach(model, recipe, seed=seed)
    module: Any = hybrid.modules[recipe.name]
    seen = Seen(hybrid, module, snapshot(model))
    real, begin = module.end_search, module.begin_search

    def begins() -> None:
        seen.begun.append(snapshot(model))
        begin()

    def watched(n: int | None = None) -> None:
        seen.before.append(snapshot(model))
        seen.changes.append({t.name: module.change(t.name).detach().clone() for t in module.entries.tensors})
        if look is not None:
            look(module)
        real(n)
        seen.after.append(snapshot(model))
        seen.chosen.append(module.entries.index.clone())

    module.begin_search, module.end_search = begins, watched
    stop = None if should_stop is None else lambda: should_stop(seen)
    seen.result = train(hybrid, encoded_task(), plan, should_stop=stop)
    del module.begin_search, module.end_search
    return seen


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """All entries in a row, in the order of the tensors."""
    return torch.cat([t.flatten() for t in tensors.values()])


def differing(seen: Seen, prefix: str = "bert.") -> Tensor:
    """Positions, among those that the method may choose, that merging changes; what it may not choose is
    compared here."""
    names = {prefix + t.name for t in seen.module.entries.tensors}
    merged = seen.merged()
    for name, value in seen.start.items():
        if name.startswith(prefix) and name not in names:
            assert torch.equal(merged[name], value), name
    parts = [prefix + t.name for t in seen.module.entries.tensors]
    return torch.cat([(merged[n] != seen.start[n]).flatten() for n in parts]).nonzero()[:, 0]


def choose_by_lot(hybrid: Hybrid) -> None:
    """What a search in the training would choose."""
    for module in hybrid.root.modules():
        if isinstance(module, SearchedEntries) and module.entries.missing:
            _draw(module.entries)
    hybrid.refresh()


def _draw(entries: SparseDelta) -> None:
    order = torch.randperm(entries.total, generator=torch.Generator().manual_seed(5))
    entries.select(order[: len(entries.index)])

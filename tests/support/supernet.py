"""Small hybrids of low-rank updates, adapters and vectors, as members of a supernet."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autopeft.hybrid import Hybrid
from autopeft.recipe import Recipe
from autopeft.training import TrainingPlan
from autopeft.training.shared_weights import SharedWeights
from autopeft.training.supernet import Member

__all__ = ["PLAN", "by_name", "member", "of_noah", "recipe", "same"]

PLAN = TrainingPlan(steps=20, batch_size=16, micro_batch=8, seed=2, device="cpu")


def recipe(lora: int = 4, adapter: int = 4, *, ia3: bool = True, **training: Any) -> Recipe:
    """Low-rank updates, adapters and vectors of these sizes; 0 is absent."""
    attached = [
        *([{"lora": {"rank": lora, "sites": ["q", "v"]}, "as": "low"}] if lora else []),
        *(
            [{"serial_adapter": {"bottleneck": adapter, "variant": "pfeiffer"}, "as": "adapter"}]
            if adapter
            else []
        ),
        *(["ia3"] if ia3 else []),
    ]
    section = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, **training}
    return Recipe.from_dict({"name": "r", "layers": [{"attach": attached}], "training": section})


def same(hybrid: Hybrid) -> dict[str, str]:
    return {name: name for name in hybrid.modules}


def member(**sizes: Any) -> Member:
    own = recipe(**sizes)
    return Member(own, {entry.name: entry.name for entry in own.entries()})


def of_noah(size: int, *kinds: str, **training: Any) -> Member:
    """A member of NOAH's modules, all of this size; of `kinds` alone where some are named."""
    items: dict[str, dict[str, Any]] = {
        "prompt": {"deep_prompt": {"length": size}},
        "low": {"lora": {"rank": size, "sites": ["q", "k", "v"], "shared_down": True, "alpha": "rank"}},
        "adapter": {
            "serial_adapter": {
                "bottleneck": size,
                "sites": ["ffn"],
                "variant": "houlsby",
                "train_norms": False,
            }
        },
    }
    attached = [{**items[kind], "as": kind} for kind in kinds or items]
    section = {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0, **training}
    own = Recipe.from_dict({"name": "r", "layers": [{"attach": attached}], "training": section})
    return Member(own, {entry.name: entry.name for entry in own.entries()})


def by_name(shared: SharedWeights) -> dict[str, Tensor]:
    """Values and moments, by the names of what trains."""
    found = {}
    for key, value in shared.checkpoint.tensors.items():
        if key.startswith("optimizer."):
            _, index, kind = key.split(".")
            found[f"{shared.trained[int(index)]} {kind}"] = value
        else:
            found[key] = value
    return found

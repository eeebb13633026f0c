"""A supernet: one hybrid at its largest, of which each step trains one member.

After NOAH (Zhang et al. 2022, arXiv:2206.04673). A member has some of the supernet's entries, each of them
with the leading part of its tensors (`autopeft.training.shared_weights`). One member is trained at each step,
by itself: what it lacks does not move, neither by stale momentum nor by decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autopeft.hybrid import Artefact, attach
from autopeft.recipe import Recipe
from autopeft.recipe.tasks import for_tasks
from autopeft.tasks.encode import EncodedTask
from autopeft.training.contexts import head_kept
from autopeft.training.head_start import begin_head
from autopeft.training.loop import OnStep, train
from autopeft.training.plan import TrainingPlan
from autopeft.training.shared_weights import SharedWeights

__all__ = ["Member", "train_supernet"]


@dataclass(frozen=True)
class Member:
    """A part of a supernet.

    Attributes:
        recipe: what it is by itself.
        origin: for each of its entries the name that it has in the supernet.
    """

    recipe: Recipe
    origin: Mapping[str, str]


@dataclass(frozen=True)
class _Rate:
    """A training policy: every rate of a recipe times a factor."""

    factor: float

    def adjust(self, groups: list[dict[str, Any]], modules: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
        return [{**group, "lr": group["lr"] * self.factor} for group in groups]


def train_supernet(
    model: PreTrainedModel,
    recipe: Recipe,
    data: EncodedTask,
    plan: TrainingPlan,
    members: Sequence[Member],
    *,
    rate: float = 1.0,
    shared: SharedWeights | None = None,
    on_step: OnStep | None = None,
    inputs: Mapping[str, Artefact] | None = None,
) -> SharedWeights:
    """Train members one after the other, each for one step.

    Afterwards, also after an exception, backbone and head are bitwise what they were.

    Args:
        recipe: of the supernet.
        plan: of its whole training, which has as many steps as members come in all of its parts together.
        rate: what every learning rate of a recipe is multiplied by.
        shared: where an earlier part ended; `None` at the start.
        on_step: see `train`.
        inputs: see `run_trial`.

    Raises:
        NonFiniteLoss, OutOfMemory: see `train`.
    """
    # A training that ends gives no checkpoint: this one always has a step left.
    plan, policies = replace(plan, steps=plan.steps + 1), (_Rate(rate),)
    model.to(plan.torch_device())  # type: ignore[arg-type]
    with head_kept(model):
        if shared is None:
            recipe = for_tasks(recipe, data.task.members)
            begin_head(model, recipe, data, plan)
            with attach(model, recipe, seed=plan.seed, inputs=inputs) as hybrid:
                shared = SharedWeights.of(hybrid, plan)
        for member in members:
            step = shared.checkpoint.step
            own = for_tasks(member.recipe, data.task.members)
            with attach(model, own, seed=plan.seed, inputs=inputs) as hybrid:
                part = shared.cut(hybrid, member.origin)
                paused = train(
                    hybrid, data, plan, on_step=on_step, until=step + 1, resume=part, policies=policies
                )
                assert paused.checkpoint is not None
                shared = shared.pasted(paused.checkpoint, hybrid, member.origin)
    return shared

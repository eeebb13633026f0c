"""What a look at a task says before anything is trained: its features, and the recipes' first gradients.

It takes less than a minute on one core: one pass over some rows for the head, then forward and backward of a
few rows for each recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.assets import reset_head
from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.recipe.training import address
from autopeft.search.portfolio.evidence import Features, Key
from autopeft.search.portfolio.templates import FittedRecipe
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.training.forward import Forward
from autopeft.training.head_start import start_head
from autopeft.training.modes import evaluation_mode, head_kept
from autopeft.training.plan import TrainingPlan

__all__ = ["PROBED_ROWS", "TaskProbe", "probe_task"]

PROBED_ROWS = 64
"""Rows of train whose gradients are taken."""

_BATCH, _SELECT_ROWS = 32, 200
Tell = Callable[[str], None]


@dataclass(frozen=True)
class TaskProbe:
    """What was measured.

    Attributes:
        features: of the task.
        first_steps: for each recipe how much its first step would lower the loss of the probed rows, to first
            order: Σ η·|g| over all that it trains, g the gradient, η the learning rate; Adam's first step is
            η·sign(g).
    """

    features: Features
    first_steps: Mapping[Key, float]


def probe_task(
    model: PreTrainedModel,
    data: EncodedTask,
    recipes: Sequence[FittedRecipe],
    plan: TrainingPlan,
    tell: Tell = lambda line: None,
    *,
    seconds: float = 60.0,
) -> TaskProbe:
    """Measure a task. The model is afterwards as it was.

    Args:
        model: of the task's kind, on the CPU or the plan's device.
        recipes: whose first steps are measured; of those that differ in their rates alone, the first.
        plan: its seed draws head, modules and rows.
        tell: takes a line of progress now and then.
        seconds: of gradients, after which no further recipe is measured.
    """
    device = plan.torch_device()
    model.to(device)  # type: ignore[arg-type]
    with head_kept(model):
        reset_head(model, plan.seed)
        tell(f"fitting the head to {len(data.train):,} rows")
        start_head(model, data, plan, alone=True)
        found = Features(
            classes=data.task.num_labels,
            tokens=float(data.train.lengths.mean()),
            head=_saved(model, data, device),
        )
        start_head(model, data, plan)  # as it is where modules train
        batches = _batches(data.train, plan.seed, device)
        steps: dict[Key, float] = {}
        end = time.monotonic() + seconds
        for member in recipes:
            if time.monotonic() > end:
                tell(f"{len(recipes) - len(steps)} recipes are not measured: {seconds:g} s are over")
                break
            key = Key(member.template, member.rate)
            rates = _scaled(member, recipes, steps)
            if rates is None:
                tell(f"gradients of {member.template}")
                rates = _first_step(model, member.recipe, data, batches, plan.seed)
            steps[key] = rates
    return TaskProbe(found, steps)


def _batches(split: EncodedSplit, seed: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Some rows of train, always the same for a seed, in batches."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(split))[:PROBED_ROWS])
    return [split.collate(rows[i : i + _BATCH], device=device) for i in range(0, len(rows), _BATCH)]


def _saved(model: PreTrainedModel, data: EncodedTask, device: torch.device) -> float:
    """Share of the constant answer's loss on *select* that the model saves; 0 where rows have no single
    distribution over classes."""
    split, loss, kind = data.select, data.task.loss(), data.task.task_kind
    train = data.train.labels
    if train is None or not len(split) or not kind.row_distribution:
        return 0.0
    counts = np.bincount(train.astype(np.int64), minlength=data.task.num_labels) + 1.0
    constant = torch.from_numpy(np.log(counts / counts.sum())).float().to(device)
    own = fixed = weight = 0.0
    with evaluation_mode(model):
        forward = Forward(model, kind=kind)
        for start in range(0, min(len(split), _SELECT_ROWS), _BATCH):
            batch = split.collate(range(start, min(start + _BATCH, len(split))), device=device)
            labels = batch["labels"]
            own += float(loss.total(forward(batch).float(), labels))
            fixed += float(loss.total(constant.expand(len(labels), -1), labels))
            weight += float(loss.weight(labels))
    return max(0.0, 1.0 - own / fixed) if fixed > 0 and math.isfinite(own) else 0.0


def _scaled(
    member: FittedRecipe, recipes: Sequence[FittedRecipe], steps: Mapping[Key, float]
) -> float | None:
    """The first step of a recipe at another of its rates, where the rate of all its modules is one."""
    first = next(r for r in recipes if r.template == member.template)
    known = steps.get(Key(first.template, first.rate))
    training, other = member.recipe.training, first.recipe.training
    if (
        known is None
        or any(address(group)[0] != "head" for group in training.groups)
        or not (training.learning_rate and other.learning_rate)
    ):
        return None
    return known * training.learning_rate / other.learning_rate


def _first_step(
    model: PreTrainedModel, recipe: Recipe, data: EncodedTask, batches: Sequence[dict[str, Tensor]], seed: int
) -> float:
    loss, kind = data.task.loss(), data.task.task_kind
    rows = sum(float(loss.weight(batch["labels"])) for batch in batches)
    with attach(model, recipe, seed=seed) as hybrid, evaluation_mode(model), torch.enable_grad():
        forward = Forward(model, kind=kind)
        for batch in batches:
            (loss.total(forward(batch).float(), batch["labels"]) / rows).backward()  # type: ignore[no-untyped-call]
        head = {id(p) for p in hybrid.head_parameters()}
        parts = (
            group["lr"] * float(p.grad.float().abs().sum())
            for group in hybrid.parameter_groups()
            for p in group["params"]
            if p.grad is not None and id(p) not in head
        )
        return float(sum(parts))

"""Whether a backbone in bf16 trains faster here than in fp32, and how much rougher its gradients are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.assets.heads import reset_head
from autopeft.backbones import spec_of_model
from autopeft.devices import synchronize
from autopeft.hybrid import Hybrid, attach
from autopeft.recipe import Recipe
from autopeft.spec import LINEAR_SITES, BackboneSpec
from autopeft.tasks.encode import EncodedTask
from autopeft.tasks.kinds import Loss
from autopeft.training.contexts import evaluation_mode, head_kept
from autopeft.training.forward import Forward
from autopeft.training.plan import TrainingPlan

__all__ = ["FASTER", "ROUGHER", "PrecisionProbe", "probe_precision"]

FASTER = 1.15
"""A step in bf16 has to be this many times as fast as one in fp32: less is within what timings vary by."""
ROUGHER = 0.02
"""Its gradient may be so far from that in fp32, as a share of its norm."""

_BATCHES, _ROUNDS, _RANK = 2, 3, 8


@dataclass(frozen=True)
class PrecisionProbe:
    """What was measured.

    Attributes:
        fp32, bf16: seconds of forward and backward over some batches, the fastest of several rounds.
        error: ‖g − g′‖ / ‖g‖ of the gradients g in fp32 and g′ in bf16.
        noise: how much the gradients in fp32 differ from batch to batch: their standard deviation as a share
            of ‖g‖.
    """

    fp32: float
    bf16: float
    error: float
    noise: float = 0.0

    @property
    def precision(self) -> str:
        """`bf16` where it is faster and not too rough, else `fp32`."""
        return "bf16" if self.fp32 >= FASTER * self.bf16 and self.error <= ROUGHER else "fp32"

    def sentence(self) -> str:
        """What was found, and what follows from it."""
        speed = f"{self.fp32 / self.bf16:.1f} times as fast as fp32" if self.bf16 > 0 else "of no duration"
        found = f"on this backbone bf16 is {speed} here, and its gradients differ by {100 * self.error:.1f} %"
        if self.precision == "bf16":
            return f"Recipes are tried in bf16: {found}."
        return f"Recipes are tried in fp32: {found}; it would have to be {FASTER} times as fast, within 2 %."


def probe_precision(
    backbone: Callable[[str], PreTrainedModel], data: EncodedTask, plan: TrainingPlan
) -> PrecisionProbe | None:
    """Time forward and backward of a fresh LoRA on all layers in both precisions, and compare its gradients.

    Both see the same rows, head and modules. The backbones are afterwards as they were.

    Args:
        backbone: gives the model in `fp32` or `bf16`.

    Returns:
        `None` where the backbone has no linear map that LoRA can sit on.
    """
    recipe = _recipe(spec_of_model(backbone("fp32"))[0])
    if recipe is None or not len(data.train):
        return None
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    gradients: dict[str, Tensor] = {}
    for round_ in range(_ROUNDS):
        for precision in seconds:
            took, gradients[precision] = _round(backbone(precision), recipe, data, plan)
            if round_ or _ROUNDS == 1:  # the first one warms up
                seconds[precision].append(took)
    exact, rough = (gradients[name].mean(dim=0) for name in ("fp32", "bf16"))
    norm = float(exact.norm()) or math.inf
    error = float((exact - rough).norm()) / norm
    spread = float((gradients["fp32"] - exact).square().sum().sqrt())
    noise = spread / math.sqrt(max(1, len(gradients["fp32"]) - 1)) / norm
    return PrecisionProbe(min(seconds["fp32"]), min(seconds["bf16"]), error, noise)


def _recipe(spec: BackboneSpec) -> Recipe | None:
    names = spec.site_names()
    sites = [s for s in ("q", "v") if s in names] or [s for s in LINEAR_SITES if s in names][:1]
    if not sites:
        return None
    return Recipe.from_dict(
        {"autopeft": 2, "layers": [{"attach": [{"lora": {"rank": _RANK, "sites": sites}}]}]}
    )


def _round(
    model: PreTrainedModel, recipe: Recipe, data: EncodedTask, plan: TrainingPlan
) -> tuple[float, Tensor]:
    """Seconds of some batches, and the modules' gradient of each, (batches, parameters) in fp32."""
    device, kind = plan.torch_device(), data.task.task_kind
    model.to(device)  # type: ignore[arg-type]
    with head_kept(model):
        if kind.head.new_head:
            reset_head(model, plan.seed)
        with attach(model, recipe, seed=plan.seed) as hybrid, evaluation_mode(model), torch.enable_grad():
            forward = Forward(model, kind=kind)
            batches = forward.batches(
                data.train, plan.micro_rows, shuffle=True, seed=plan.seed, device=device
            )
            chosen = [batch for batch, _ in zip(batches, range(_BATCHES), strict=False)]
            loss, took, found = data.task.loss(), 0.0, []
            for batch in chosen:
                took += _timed(partial(_backward, forward, batch, loss), device)
                found.append(_gradient(hybrid))
            return took, torch.stack(found)


def _backward(forward: Forward, batch: Mapping[str, Tensor], loss: Loss) -> None:
    logits = forward(batch)
    (loss.total(logits.float(), batch) / loss.weight(batch)).backward()


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    start = now()
    run()
    return now() - start


def _gradient(hybrid: Hybrid) -> Tensor:
    """The gradient, flat and in fp32, which is then gone from the modules."""
    found = [p.grad.float().flatten() for p in hybrid.root.parameters() if p.grad is not None]
    hybrid.root.zero_grad()
    return torch.cat(found).cpu() if found else torch.zeros(0)

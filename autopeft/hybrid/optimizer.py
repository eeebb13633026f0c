"""The optimizer that a recipe asks for, with decay towards what each parameter should fall back to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from autopeft.errors import UsageError
from autopeft.method import DecayTarget, decay, decay_targets
from autopeft.recipe import optimizer as sections

__all__ = ["FUSED", "build_optimizer"]

FUSED = ("adamw", "adam", "sgd")
"""Which take `fused=True`."""

_OWN_DECAY = "decay_towards_target"


def build_optimizer(
    groups: Sequence[Mapping[str, Any]],
    section: sections.Optimizer,
    modules: Iterable[nn.Module],
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer over groups with `params`, `lr`, `weight_decay` and `name`.

    Parameters whose module says that they decay towards another value than zero (`decays`) get
    p ← p − lr·λ·(p − target) before each step in which they have a gradient, whatever the optimizer, and no
    decay of its own. Where they share a group with others, the group is divided; all keep its name.

    Args:
        groups: what trains; not altered.
        section: the recipe's `training.optimizer`.
        modules: those whose parameters are in the groups.
        options: of the optimizer's class, in place of what the recipe says.

    Raises:
        UsageError: there is no group.
    """
    targets = decay_targets(modules)
    divided = [part for group in groups for part in _divided(group, targets)]
    if not divided:
        raise UsageError(
            "There is nothing to train: the recipe has no entry with parameters, and the model no task head. "
            "Add an entry such as lora to the recipe, or load a model with a head "
            "(AutoModelForSequenceClassification)."
        )
    optimizer: torch.optim.Optimizer = _class_of(section)(divided, **{**_options(section), **options})
    if any(group.get(_OWN_DECAY) for group in divided):
        optimizer.register_step_pre_hook(_Decay(targets))
    return optimizer


def _divided(group: Mapping[str, Any], targets: Mapping[int, DecayTarget]) -> list[dict[str, Any]]:
    """A group, or where it decays: what decays towards zero, towards something else, and not at all."""
    parameters, strength = list(group["params"]), group.get("weight_decay", 0.0)
    if not strength or not any(id(p) in targets for p in parameters):
        return [{**group, "params": parameters}]
    towards = {"weight_decay": 0.0, _OWN_DECAY: strength}
    kinds: tuple[tuple[list[nn.Parameter], dict[str, float]], ...] = (
        ([p for p in parameters if id(p) not in targets], {}),
        ([p for p in parameters if targets.get(id(p)) is not None], towards),
        ([p for p in parameters if targets.get(id(p), 0.0) is None], {"weight_decay": 0.0}),
    )
    return [{**group, **changed, "params": chosen} for chosen, changed in kinds if chosen]


class _Decay:
    """What the optimizer calls before each step."""

    def __init__(self, targets: Mapping[int, DecayTarget]) -> None:
        self.targets = targets

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            share = float(group["lr"]) * group.get(_OWN_DECAY, 0.0)
            for parameter in group["params"] if share else ():
                target = self.targets[id(parameter)]
                if parameter.grad is not None and target is not None:
                    decay(parameter, target, share)


def _class_of(section: sections.Optimizer) -> Any:
    classes: dict[type[Any], Any] = {
        sections.AdamW: torch.optim.AdamW,
        sections.Adam: torch.optim.Adam,
        sections.SGD: torch.optim.SGD,
    }
    if isinstance(section, sections.Adafactor):
        from transformers.optimization import Adafactor  # imports the Trainer's helpers

        return Adafactor
    return classes[type(section)]


def _options(section: sections.Optimizer) -> dict[str, Any]:
    """What the optimizer's class is given; decay is the groups' affair."""
    if isinstance(section, sections.SGD):
        return {"weight_decay": 0.0, "momentum": section.momentum, "nesterov": section.nesterov}
    if isinstance(section, sections.Adafactor):
        return {
            "weight_decay": 0.0,
            "relative_step": False,
            "scale_parameter": section.scale_parameter,
            "decay_rate": section.decay_rate,
            "clip_threshold": section.update_threshold,
        }
    return {"weight_decay": 0.0, "betas": section.betas, "eps": section.epsilon}

"""A hybrid's optimizer: its parameter groups, its class, and decay towards a target of each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.backbones import hidden_of_head
from autopeft.errors import UsageError
from autopeft.method import DecayTarget, decay, decay_targets, parts_of
from autopeft.recipe import TrainingSection
from autopeft.recipe import optimizer as sections

__all__ = ["FUSED", "build_optimizer", "groups_of", "groups_of_head"]

FUSED = ("adamw", "adam", "sgd")
"""Optimizers that take `fused=True`."""

_OWN_DECAY = "decay_towards_target"

Group = dict[str, Any]


def groups_of(name: str, kind: str, module: nn.Module, training: TrainingSection) -> list[Group]:
    """The optimizer groups of an entry or a composition: dicts with `name`, `params`, `lr`, `weight_decay`.

    There is one group, or those of the module's own `parameter_groups()`; each part that the recipe has a
    group for is split off as `<name>.<part>`.

    Args:
        name: of the entry.
        kind: its method, or the kind of composition.
        module: what was built for it.
        training: the recipe's section.
    """
    own: Callable[[], list[Group]] | None = getattr(module, "parameter_groups", None)
    parameters = [p for p in module.parameters() if p.requires_grad]
    given: list[Group] = own() if own is not None else [{"params": parameters}] if parameters else []
    # The parameters, by id, of each part that the recipe has a group for; training may have removed a part.
    wanted = training.parts(name, kind)
    there = parts_of(module) if wanted else {}
    parts = {part: {id(p) for p in there.get(part, ())} for part in wanted}
    groups: list[Group] = []
    for group in given:
        left = list(group["params"])
        split = []
        for part, members in parts.items():
            chosen = [p for p in left if id(p) in members]
            left = [p for p in left if id(p) not in members]
            if chosen:
                rate, decay = training.settings(name, kind, part=part, own=group)
                changed = {"lr": rate, "weight_decay": decay, "name": f"{name}.{part}", "params": chosen}
                split.append({**group, **changed})
        if left or not split:
            rate, decay = training.settings(name, kind, own=group)
            label = f"{name}.{group['name']}" if "name" in group else name
            groups.append({**group, "lr": rate, "weight_decay": decay, "name": label, "params": left})
        groups += split
    return groups


def groups_of_head(
    model: PreTrainedModel, head: Mapping[str, nn.Parameter], training: TrainingSection
) -> list[Group]:
    """The optimizer groups of a task head: one, and its hidden layers apart where the recipe has a group for
    them and the head has some.

    Args:
        head: its parameters by their names in the model.
    """
    hidden = hidden_of_head(model) if "hidden" in training.parts("head") else {}
    groups = []
    for name, part in (("head", ""), ("head.hidden", "hidden")):
        params = [p for own, p in head.items() if (own in hidden) == bool(part)]
        if params:
            rate, decay = training.settings("head", part=part)
            groups.append({"name": name, "params": params, "lr": rate, "weight_decay": decay})
    return groups


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
    # A group that decays is divided: towards zero, towards something else, and not at all.
    targets = decay_targets(modules)
    divided: list[Group] = []
    for group in groups:
        parameters, strength = list(group["params"]), group.get("weight_decay", 0.0)
        if not strength or not any(id(p) in targets for p in parameters):
            divided.append({**group, "params": parameters})
            continue
        towards = {"weight_decay": 0.0, _OWN_DECAY: strength}
        kinds: tuple[tuple[list[nn.Parameter], dict[str, float]], ...] = (
            ([p for p in parameters if id(p) not in targets], {}),
            ([p for p in parameters if targets.get(id(p)) is not None], towards),
            ([p for p in parameters if targets.get(id(p), 0.0) is None], {"weight_decay": 0.0}),
        )
        divided += [{**group, **changed, "params": chosen} for chosen, changed in kinds if chosen]
    if not divided:
        raise UsageError(
            "There is nothing to train: the recipe has no entry with parameters, and the model no task head. "
            "Add an entry such as lora to the recipe, or load a model with a head "
            "(AutoModelForSequenceClassification)."
        )

    # The class, and its options but for decay, which the groups have.
    kind: Any
    own: dict[str, Any]
    if isinstance(section, sections.SGD):
        kind, own = torch.optim.SGD, {"momentum": section.momentum, "nesterov": section.nesterov}
    elif isinstance(section, sections.Adafactor):
        from transformers.optimization import Adafactor  # imports the Trainer's helpers

        kind = Adafactor
        own = {
            "relative_step": False,
            "scale_parameter": section.scale_parameter,
            "decay_rate": section.decay_rate,
            "clip_threshold": section.update_threshold,
        }
    else:
        kind = torch.optim.AdamW if isinstance(section, sections.AdamW) else torch.optim.Adam
        own = {"betas": section.betas, "eps": section.epsilon}
    optimizer: torch.optim.Optimizer = kind(divided, **{"weight_decay": 0.0, **own, **options})
    if any(group.get(_OWN_DECAY) for group in divided):
        optimizer.register_step_pre_hook(_Decay(targets))
    return optimizer


class _Decay:
    """A hook in front of each step: decay towards a target that is not zero."""

    def __init__(self, targets: Mapping[int, DecayTarget]) -> None:
        self.targets = targets

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            share = float(group["lr"]) * group.get(_OWN_DECAY, 0.0)
            for parameter in group["params"] if share else ():
                target = self.targets[id(parameter)]
                if parameter.grad is not None and target is not None:
                    decay(parameter, target, share)

"""What a module tells the optimizer of its parameters: which parts they form, and where they decay to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.errors import MethodError, near

__all__ = ["DecayTarget", "decay", "decay_targets", "no_such_part", "part_names", "parts_of", "shortened"]

DecayTarget = float | Tensor | None
"""The value (or values, of the parameter's shape) that a parameter decays towards; `None`: it does not."""


def shortened(meant: int, steps: float) -> float:
    """√(meant / steps), and at least 1: by what a training of `steps` multiplies a rate or a penalty that is
    meant for one of `meant` steps.

    A step of Adam has about the size of the rate, so that n steps reach n times the rate where gradients
    agree, and √n times the rate where they are noise. The square root keeps the reach of noise.
    """
    return math.sqrt(max(1.0, meant / max(1.0, steps)))


def part_names(method: Any) -> tuple[str, ...] | None:
    """The parts that modules of a method have; `None` where the method does not say.

    A class names all that there may be; a configured method narrows them to those that its config has.
    """
    names: tuple[str, ...] | None = getattr(method, "part_names", None)
    return names


def parts_of(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parts of a module that have parameters at present, by name.

    They are those of its `parts()`, and the groups of its `parameter_groups()` that have a name.
    """
    own: Any = module
    found: dict[str, list[nn.Parameter]] = dict(own.parts()) if hasattr(module, "parts") else {}
    for group in own.parameter_groups() if hasattr(module, "parameter_groups") else ():
        if "name" in group:
            found.setdefault(group["name"], list(group["params"]))
    return {name: parameters for name, parameters in found.items() if parameters}


def no_such_part(name: str, part: str, parts: Collection[str]) -> str:
    """The sentence for a group `name.part` where `name` has other `parts`."""
    if not parts:
        return f"{name!r} is not divided into parts, so it has no {part!r}; write {name!r} alone."
    listed = ", ".join(f"{name}.{known}" for known in parts)
    return f"{name!r} has no part {part!r}.{near(part, parts)} Write {name!r} for all of it, or {listed}."


def decay_targets(modules: Iterable[nn.Module]) -> dict[int, DecayTarget]:
    """Where parameters decay to that do not decay towards zero, by their `id`.

    Raises:
        MethodError: a module names a parameter that it does not have, or a target of another shape.
    """
    targets: dict[int, DecayTarget] = {}
    for module in modules:
        decays: Any = getattr(module, "decays", None)
        if decays is None:
            continue
        found: Mapping[nn.Parameter, DecayTarget] = decays()
        own = {id(parameter) for parameter in module.parameters()}
        for parameter, target in found.items():
            if id(parameter) not in own:
                raise MethodError(
                    f"`decays` of {type(module).__qualname__} names a parameter of shape "
                    f"{tuple(parameter.shape)} that is none of its own."
                )
            if isinstance(target, Tensor) and target.shape != parameter.shape:
                raise MethodError(
                    f"`decays` of {type(module).__qualname__} has a target of shape {tuple(target.shape)} "
                    f"for a parameter of shape {tuple(parameter.shape)}; they must be the same."
                )
            if isinstance(target, Tensor) or target != 0:
                targets[id(parameter)] = target
    return targets


@torch.no_grad()
def decay(parameter: nn.Parameter, target: float | Tensor, share: float) -> None:
    """p ← p − share·(p − target): where p is at the target it stays there, to the last bit."""
    if isinstance(target, Tensor):
        target = target.to(parameter.device)  # the model may have moved since it was asked
    parameter.sub_(parameter - target, alpha=share)

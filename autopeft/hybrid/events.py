"""Events of the loop, found on the modules of a hybrid by their presence.

A module takes part in an event by having a method of its name (see `autopeft.method`); the loop knows no
method by name. Order of one step: `before_step`, forward, `loss_terms`, backward,
`after_backward`, clipping, `before_update`, the optimizer, `after_step`, in which the gradients are still
there; `finish` once at the end of training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from autopeft.method import LossStep

__all__ = ["STEP_EVENTS", "fire", "loss_terms", "settled"]

STEP_EVENTS = ("before_step", "after_backward", "before_update", "after_step")


def fire(event: str, modules: Iterable[nn.Module], *arguments: int) -> None:
    """Call `event(*arguments)` on every module that has it: a step's with the step, 0-based, and how many
    there are, `finish` without arguments."""
    for module in modules:
        handler: Any = getattr(module, event, None)
        if handler is not None:
            handler(*arguments)


def loss_terms(owners: Iterable[Any], step: LossStep) -> Tensor | None:
    """Sum of the own loss terms of modules and policies, or `None` where there are none."""
    total: Tensor | None = None
    for owner in owners:
        handler: Any = getattr(owner, "loss_terms", None)
        term = None if handler is None else handler(step)
        if term is not None:
            total = term if total is None else total + term
    return total


def settled(module: nn.Module, step: int, total: int) -> bool:
    """Whether after `step` of `total` steps the module may stay as it is: training has no more to take away
    from it or to find for it."""
    handler: Any = getattr(module, "settled", None)
    return handler is None or bool(handler(step, total))

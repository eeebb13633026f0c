"""Squares of the loss's gradients, summed over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["squared_gradients"]


def squared_gradients(
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[dict[str, Tensor]],
    objective: Callable[[dict[str, Tensor]], Tensor],
) -> tuple[dict[str, Tensor], int]:
    """Σ g² of each parameter in fp32, with g the gradient of each batch's mean loss, and how many batches
    there were.

    Parameters that a loss does not reach get nothing from it. Gradients already held and `requires_grad` stay
    as they were.
    """
    sums = {n: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for n, p in parameters.items()}
    required, seen = {n: p.requires_grad for n, p in parameters.items()}, 0
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        for batch in batches:
            seen += 1
            grads = torch.autograd.grad(objective(batch), list(parameters.values()), allow_unused=True)
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    sums[name].add_(grad.float().square())
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    return sums, seen

"""The gradient of a bilevel problem's upper level through one step of its lower one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from autopeft.method import OuterStep

__all__ = ["hypergradient"]

_RADIUS = 0.01  # how far the finite difference goes, as in DARTS


@torch.no_grad()
def hypergradient(step: OuterStep, selection: Sequence[nn.Parameter]) -> list[Tensor]:
    """d L₂(θ − η∇L₁(θ, c), c)/dc, with the mixed second derivative by a central difference.

    Liu et al. 2019, arXiv:1806.09055, eq. 7–8: ∇_c L₂(θ′, c) − [∇_c L₁(θ⁺, c) − ∇_c L₁(θ⁻, c)]/2ε with
    θ′ = θ − η∇L₁(θ, c), θ± = θ ± εu, u = η·∇_θ′ L₂(θ′, c) and ε = 0.01/‖u‖; η is each parameter's own
    learning rate. θ are the step's parameters, bitwise the same afterwards, c the `selection`.
    """
    lower, rates = step.parameters, step.rates
    start = [p.clone() for p in lower]

    def move(by: Sequence[Tensor], length: float | Tensor) -> None:
        for parameter, begin, direction in zip(lower, start, by, strict=True):
            parameter.copy_(begin + length * direction)

    def scaled(gradient: Sequence[Tensor]) -> list[Tensor]:
        return [rate * g for rate, g in zip(rates, gradient, strict=True)]

    try:
        move(scaled(step.lower(lower)), -1.0)
        found = step.upper([*lower, *selection])
        direction, direct = scaled(found[: len(lower)]), found[len(lower) :]
        norms = torch.stack([torch.linalg.vector_norm(d.float()) for d in direction])
        epsilon = _RADIUS / torch.linalg.vector_norm(norms).clamp(min=1e-30)
        move(direction, epsilon)
        ahead = step.lower(selection)
        move(direction, -epsilon)
        behind = step.lower(selection)
    finally:
        for parameter, begin in zip(lower, start, strict=True):
            parameter.copy_(begin)
    return [d - (a - b) / (2 * epsilon) for d, a, b in zip(direct, ahead, behind, strict=True)]

"""How much the loss depends on each entry of some parameters, smoothed over the steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Sensitivity"]


class Sensitivity(nn.Module):
    """S = Ī·Ū of N entries: Ī ← β₁·Ī + (1 − β₁)·I and Ū ← β₂·Ū + (1 − β₂)·|I − Ī|, with I = |w·∂w|.

    Zhang et al. 2022, arXiv:2206.12562, as AdaLoRA uses it. Buffers `mean` and `uncertainty` (N) start at
    zero; entries are in the order of the parameters, flattened.
    """

    mean: Tensor
    uncertainty: Tensor

    def __init__(self, entries: int, beta1: float, beta2: float) -> None:
        super().__init__()
        self.beta1, self.beta2 = beta1, beta2
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("uncertainty", torch.zeros(entries))

    @torch.no_grad()
    def observe(self, parameters: Iterable[Tensor]) -> None:
        """Take in the present values and gradients; a parameter without one counts as zeros."""
        found = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]
        weights, grads = (torch.cat([t.flatten() for t in tensors]) for tensors in zip(*found, strict=True))
        now = (weights * grads).abs()
        self.mean.lerp_(now, 1 - self.beta1)
        self.uncertainty.lerp_((now - self.mean).abs(), 1 - self.beta2)

    def score(self) -> Tensor:
        """S (N)."""
        return self.mean * self.uncertainty

"""A low-rank map as a sum of triplets, as in a singular value decomposition, and how many of them stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Triplets", "triplets_at"]


class Triplets(nn.Module):
    """x ↦ P·diag(E)·Q·dropout(x) with P (out × r) and Q (r × in) from N(0, 0.02²) and E (r) zero."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, dropout: float) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.randn(out_features, rank) * 0.02)
        self.E = nn.Parameter(torch.zeros(rank))
        self.Q = nn.Parameter(torch.randn(rank, in_features) * 0.02)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, self.E[:, None] * self.Q), self.P)

    def product(self) -> Tensor:
        """P·diag(E)·Q, (out × in)."""
        return self.P @ (self.E[:, None] * self.Q)

    def hold(self, p: Tensor, e: Tensor, q: Tensor) -> None:
        """Consist of these from now on, whatever their number."""
        self.P, self.E, self.Q = (nn.Parameter(t.detach().clone()) for t in (p, e, q))


def triplets_at(step: int, total: int, first: int, last: int, warmup: int, final: int) -> int:
    """b(t): how many triplets are kept after `step` of `total` steps.

    `first` up to step `warmup`, `last` from `total − final` on, a falling cubic in between.
    """
    if step >= total - final:
        return last
    if step <= warmup:
        return first
    left = 1 - (step - warmup) / (total - final - warmup)
    return int(last + (first - last) * left**3)

"""An attention over what several modules add at a position."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Fusion"]

_OFF_DIAGONAL = 1e-6


class Fusion(nn.Module):
    """u (…, read), z (…, N, d) ↦ Σₜ αₜ·W_v·zₜ (…, d), α = softmaxₜ(dropout((W_q·u + b_q)·(W_k·zₜ + b_k))).

    Pfeiffer et al. 2021, arXiv:2005.00247, as in the library `adapters`: no 1/√d, dropout on the scores.
    W_q and W_k are N(0, 0.02), their biases zero; W_v is 1 on the diagonal and 1e-6 elsewhere.
    """

    def __init__(self, read: int, width: int, *, value: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(read, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width, bias=False) if value else None
        self.dropout = dropout
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.value is not None:
            nn.init.constant_(self.value.weight, _OFF_DIAGONAL)
            self.value.weight.data.fill_diagonal_(1.0)

    @staticmethod
    def size(read: int, width: int, *, value: bool = True) -> int:
        """Parameters: those of query, key and value."""
        return (read + 1) * width + (width + 1) * width + (width * width if value else 0)

    def weights(self, u: Tensor, z: Tensor) -> Tensor:
        """α, (…, N)."""
        u, z = u.to(self.query.weight.dtype), z.to(self.key.weight.dtype)
        scores = (self.query(u).unsqueeze(-2) * self.key(z)).sum(-1)
        if self.dropout:
            scores = nn.functional.dropout(scores, self.dropout, self.training)
        return torch.softmax(scores, dim=-1)

    def forward(self, u: Tensor, z: Tensor) -> Tensor:
        mixed = (self.weights(u, z).unsqueeze(-1) * z).sum(-2)
        if self.value is not None:  # linear and without a bias: of the mixture, in the place of each zₜ
            mixed = self.value(mixed.to(self.value.weight.dtype))
        return mixed.to(z.dtype)

    def distance(self) -> Tensor:
        """‖I − W_v‖², the squared Frobenius norm."""
        assert self.value is not None
        identity = torch.eye(len(self.value.weight), device=self.value.weight.device)
        return (identity - self.value.weight).square().sum()

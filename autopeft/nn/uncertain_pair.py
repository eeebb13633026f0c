"""A low-rank pair that knows the curvature of its factors and can be watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from autopeft.nn.kronecker_curvature import KroneckerCurvature
from autopeft.nn.low_rank import LowRankPair

__all__ = ["SeenPair", "UncertainPair", "joined"]


@dataclass(frozen=True)
class SeenPair:
    """One call of a pair, y = B·z with z = A·x: x, z, and something at z and at y, zeros that want a gradient
    or that gradient; all (rows, …, features)."""

    x: Tensor
    z: Tensor
    at_z: Tensor
    at_y: Tensor


class UncertainPair(LowRankPair):
    """A low-rank pair with the curvatures `posterior_A` over A and `posterior_B` over B, their small sides
    the rank, of which the other factor has at most `curvature_rank`.

    Between `record` and `forget` its calls, without dropout, are in `seen`.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, dropout: float, curvature_rank: int
    ) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        self.posterior_A = KroneckerCurvature(rank, in_features, curvature_rank)
        self.posterior_B = KroneckerCurvature(rank, out_features, curvature_rank)
        self.seen: list[SeenPair] = []
        self._recording = False

    def record(self) -> None:
        """Keep calls from now on."""
        self._recording, self.seen = True, []

    def forget(self) -> None:
        """Keep none, nor those that were kept."""
        self._recording, self.seen = False, []

    def forward(self, x: Tensor) -> Tensor:
        if not self._recording:
            return super().forward(x)
        z = F.linear(x, self.A)
        # Added zeros get the gradient of what they are added to, whatever else requires one.
        at_z = torch.zeros_like(z, requires_grad=True)
        z = z + at_z
        y = F.linear(z, self.B)
        at_y = torch.zeros_like(y, requires_grad=True)
        self.seen.append(SeenPair(x.detach(), z.detach(), at_z, at_y))
        return y + at_y


def joined(calls: Sequence[SeenPair]) -> SeenPair:
    """Several calls for the same rows as one, (rows, positions, features), in fp32."""

    def all_of(name: str) -> Tensor:
        tensors: list[Tensor] = [getattr(call, name) for call in calls]
        return torch.cat([t.reshape(len(t), -1, t.shape[-1]).float() for t in tensors], dim=1)

    return SeenPair(*(all_of(f.name) for f in fields(SeenPair)))

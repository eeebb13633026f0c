"""Maps beside those of the backbone that are there or not, as something settles before training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from autopeft.nn.bottleneck import Bottleneck
from autopeft.nn.low_rank import LowRankPair

__all__ = ["SettledAdapter", "SettledPair", "drop_path"]


def drop_path(y: Tensor, p: float, training: bool) -> Tensor:
    """y (rows, …) where training with whole rows of it zero, each with probability p, and the others divided
    by 1 − p: stochastic depth (Huang et al. 2016, arXiv:1603.09382)."""
    if not p or not training:
        return y
    kept = torch.rand(len(y), *[1] * (y.ndim - 1), device=y.device) >= p
    return y * (kept.to(y.dtype) / (1 - p))


class SettledPair(LowRankPair):
    """(x, y) ↦ B·A·dropout(x), whole rows dropped with probability `drop_path`; at first of rank 0, which is
    nothing."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, dropout: float, drop_path: float
    ) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        self.path_dropout, self.largest = drop_path, rank
        self.leave_out()

    @property
    def there(self) -> bool:
        """Whether it is."""
        return len(self.A) > 0

    @property
    def cost(self) -> int:
        """Its parameters where it is."""
        return self.largest * (self.A.shape[1] + len(self.B))

    def put_in(self) -> None:
        """Be there, of the whole rank and with LoRA's init."""
        fresh = LowRankPair(self.A.shape[1], len(self.B), self.largest).to(self.A)
        self.hold(fresh.A, fresh.B)

    def leave_out(self) -> None:
        """Be nothing."""
        self.hold(self.A[:0], self.B[:, :0])

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to the output y of a map that reads x."""
        return drop_path(self(x), self.path_dropout, self.training)


class SettledAdapter(nn.Module):
    """(x, y) ↦ φ(dropout(y)·Dᵀ + c)·Uᵀ + e with D (rank × out), U (out × rank) and GELU for φ; rows are
    dropped as `SettledPair` drops them. At first it is nothing.

    D and c start as those of `nn.Linear`, U and e at zero.
    """

    def __init__(self, width: int, rank: int, *, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.width, self.rank = width, rank
        self.dropout, self.path_dropout = dropout, drop_path
        self.inner = Bottleneck(width, rank, activation="gelu", init="lora")
        self.leave_out()

    @property
    def there(self) -> bool:
        """Whether it is."""
        return len(self.inner.down.weight) > 0

    @property
    def cost(self) -> int:
        """Its parameters where it is."""
        return Bottleneck.size(self.width, self.rank)

    def put_in(self) -> None:
        """Be there, of the whole rank."""
        fresh = Bottleneck(self.width, self.rank, activation="gelu", init="lora").to(self.inner.down.weight)
        bound = 1 / math.sqrt(self.width)
        nn.init.uniform_(fresh.down.bias, -bound, bound)
        for name in ("down", "up"):
            own, new = getattr(self.inner, name), getattr(fresh, name)
            own.weight, own.bias = new.weight, new.bias

    def leave_out(self) -> None:
        """Be nothing."""
        down, up = self.inner.down, self.inner.up
        down.weight, down.bias = nn.Parameter(down.weight[:0].detach()), nn.Parameter(down.bias[:0].detach())
        up.weight, up.bias = nn.Parameter(up.weight[:, :0].detach()), nn.Parameter(up.bias[:0].detach())

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to the output y of a map."""
        inner = nn.functional.dropout(y, self.dropout, self.training) if self.dropout else y
        return drop_path(self.inner(inner), self.path_dropout, self.training)

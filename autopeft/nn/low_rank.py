"""The low-rank pair B·A."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Down", "JoinedPair", "LowRankPair", "PrunedPair"]


def _start(a: Tensor, std: float | None) -> None:
    if std is None:
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    else:
        nn.init.normal_(a, std=std)


class LowRankPair(nn.Module):
    """x ↦ B·A·dropout(x) with A (rank × in) Kaiming-uniform(a = √5), or N(0, std²), and B (out × rank) zero.

    Shapes: (…, in) → (…, out).
    """

    by_rank: ClassVar[Mapping[str, tuple[int, ...]]] = {"A": (0,), "B": (1,)}
    linear_in: ClassVar[Mapping[str, float]] = {"B": 0.0}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        dropout: float = 0.0,
        std: float | None = None,
    ) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.empty(out_features, rank))
        self.dropout, self.std = dropout, std
        self.reset()

    def reset(self) -> None:
        """Start from the init again."""
        _start(self.A, self.std)
        nn.init.zeros_(self.B)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, self.down()), self.B)

    def down(self) -> Tensor:
        """A, or A with what a kind of pair puts between the factors, (rank × in)."""
        return self.A

    def hold(self, a: Tensor, b: Tensor) -> None:
        """Consist of copies of these factors from now on, whatever their rank."""
        self.A, self.B = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())

    def product(self) -> Tensor:
        """B·A, (out × in)."""
        return self.B @ self.down()


class Down(nn.Module):
    """A (rank × in) of several pairs, as `LowRankPair` starts it."""

    def __init__(self, in_features: int, rank: int, *, std: float | None = None) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, in_features))
        _start(self.A, std)


class JoinedPair(LowRankPair):
    """A pair that has B of its own and reads A of a `Down`, which belongs to the module that has the pair."""

    def __init__(self, down: Down, out_features: int, *, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.B = nn.Parameter(torch.zeros(out_features, len(down.A)))
        self.dropout, self.source = dropout, (down,)  # in a tuple torch does not take it for a child

    def down(self) -> Tensor:
        return self.source[0].A


class PrunedPair(LowRankPair, ABC):
    """A pair of which training leaves ranks out."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """How many ranks stay."""

    @abstractmethod
    def deploy(self) -> None:
        """Become a plain pair that computes the same."""

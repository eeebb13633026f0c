"""Affine maps of several places, stacked in one tensor of each kind, of which some may be dropped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autopeft.nn.kronecker import kronecker_sum

__all__ = ["StackedMaps"]

_STD = 0.05  # of the factors of Kronecker products


class StackedMaps(nn.Module):
    """x ↦ x·Wᵢ + bᵢ for `count` places i; with `shared` one W for all of them.

    W (rows × columns) is dense, or a sum of n Kronecker products of `rules` (n × n) and `weight`. Dense maps
    and biases start as torch's linear maps, factors from N(0, 0.05).
    """

    rules: nn.Parameter | None

    def __init__(self, count: int, rows: int, columns: int, n: int | None, *, shared: bool) -> None:
        super().__init__()
        copies, bound = 1 if shared else count, rows**-0.5
        self.shared, self.rules = shared, None
        if n is None:
            self.weight = nn.Parameter(torch.empty(copies, rows, columns).uniform_(-bound, bound))
        else:
            self.rules = nn.Parameter(torch.empty(copies, n, n, n).normal_(std=_STD))
            self.weight = nn.Parameter(torch.empty(copies, n, rows // n, columns // n).normal_(std=_STD))
        self.bias = nn.Parameter(torch.empty(count, columns).uniform_(-bound, bound))

    @staticmethod
    def size(count: int, rows: int, columns: int, n: int | None, *, shared: bool) -> int:
        """Parameters."""
        one = rows * columns if n is None else rows * columns // n + n**3
        return one * (1 if shared else count) + count * columns

    def forward(self, place: int, x: Tensor) -> Tensor:
        """(…, columns) for x (…, rows)."""
        copy = 0 if self.shared else place
        weight: Tensor = self.weight[copy]
        if self.rules is not None:
            weight = kronecker_sum(self.rules[copy], weight)
        return x @ weight + self.bias[place]

    @torch.no_grad()
    def keep(self, places: Tensor) -> None:
        """Drop all places but these, in this order."""
        self.bias = nn.Parameter(self.bias[places].clone())
        if self.shared:
            return
        self.weight = nn.Parameter(self.weight[places].clone())
        if self.rules is not None:
            self.rules = nn.Parameter(self.rules[places].clone())

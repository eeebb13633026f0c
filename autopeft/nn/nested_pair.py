"""A low-rank pair that holds one of every smaller rank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["NestedPair"]


class NestedPair(nn.Module):
    """Factors whose first b rows and columns are a pair of rank b.

    Each row of A (R × in) and each column of B (out × R) is a parameter of its own, so that the optimizer
    passes over those that a step does not train, their moments and weight decay included. The deployed form
    holds A (b × in) and B (out × b) whole.
    """

    A: nn.ParameterList | nn.Parameter
    B: nn.ParameterList | nn.Parameter

    def __init__(self, in_features: int, out_features: int, rank: int, *, dropout: float) -> None:
        super().__init__()
        rows = torch.empty(rank, in_features)
        nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
        self.A = nn.ParameterList(row.clone() for row in rows)
        self.B = nn.ParameterList(torch.zeros(out_features) for _ in range(rank))
        self.dropout = dropout

    def factors(self, rank: int, *, only_last: bool = False) -> tuple[Tensor, Tensor]:
        """A (rank × in) and B (out × rank); with `only_last` gradients reach their last row and column
        alone."""
        if isinstance(self.A, nn.Parameter) and isinstance(self.B, nn.Parameter):
            return self.A[:rank], self.B[:, :rank]
        rows: list[Tensor] = list(self.A)[:rank]
        columns: list[Tensor] = list(self.B)[:rank]
        if only_last:
            rows = [*(row.detach() for row in rows[:-1]), rows[-1]]
            columns = [*(column.detach() for column in columns[:-1]), columns[-1]]
        return torch.stack(rows), torch.stack(columns, dim=1)

    def forward(self, x: Tensor, rank: int, *, only_last: bool = False) -> Tensor:
        a, b = self.factors(rank, only_last=only_last)
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, a), b)

    def hold(self, a: Tensor, b: Tensor) -> None:
        """Keep these factors whole, in place of the rows and columns."""
        self.A, self.B = nn.Parameter(a.detach().clone()), nn.Parameter(b.detach().clone())

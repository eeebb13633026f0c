"""Vectors that a prompt consists of, bare or made by an MLP that only training needs.

Li & Liang 2021, arXiv:2101.00190, §4.3: P = W₂·tanh(W₁·E + b₁) + b₂. `PromptEncoder` is tanh(W₁·E + b₁),
shared by all places; `PromptRows` is the block of rows of W₂ and b₂ that one place reads, so that its forward
and backward cost its own rows only.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["PromptEncoder", "PromptRows"]


def _started(linear: nn.Linear, std: float | None) -> nn.Linear:
    """With `std`, weights from N(0, std) and a bias of zero; else as torch starts them."""
    if std is not None:
        nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
    return linear


class PromptEncoder(nn.Module):
    """tanh(W₁·E + b₁), (length, mid), with E (length, hidden) from N(0, 1) and W₁ (mid, hidden) as torch
    starts a linear map; with `std`, E and W₁ from N(0, std) and b₁ zero."""

    def __init__(self, length: int, hidden: int, mid: int, *, std: float | None = None) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, hidden) * (1.0 if std is None else std))
        self.down = _started(nn.Linear(hidden, mid), std)

    @staticmethod
    def size(length: int, hidden: int, mid: int) -> int:
        """Parameters: l·h + h·mid + mid."""
        return length * hidden + hidden * mid + mid

    def forward(self) -> Tensor:
        return torch.tanh(self.down(self.embedding))


class PromptRows(nn.Module):
    """(length, width): a parameter from N(0, std), or with `mid` a linear map of a `PromptEncoder`.

    Without `std` the parameter is from N(0, 0.02) and the map as torch starts it; with it both are from
    N(0, std), the map's bias zero.
    """

    rows: nn.Parameter | None
    up: nn.Linear | None

    def __init__(self, length: int, width: int, *, mid: int | None = None, std: float | None = None) -> None:
        super().__init__()
        start = 0.02 if std is None else std
        self.rows = nn.Parameter(torch.randn(length, width) * start) if mid is None else None
        self.up = _started(nn.Linear(mid, width), std) if mid is not None else None

    @staticmethod
    def size(length: int, width: int, *, mid: int | None = None) -> int:
        """Parameters: l·w, or mid·w + w behind an encoder."""
        return length * width if mid is None else mid * width + width

    def forward(self, encoder: PromptEncoder | None = None) -> Tensor:
        """The rows; `encoder` is read only by rows that were built for one and not yet deployed."""
        if self.rows is not None:
            return self.rows
        return cast(nn.Linear, self.up)(cast(PromptEncoder, encoder)())  # type: ignore[no-any-return]

    def deploy(self, encoder: PromptEncoder | None = None) -> None:
        """Keep the rows as a parameter of their own, bit for bit, and drop the map that made them."""
        with torch.no_grad():
            rows = self(encoder).clone()
        self.rows, self.up = nn.Parameter(rows), None

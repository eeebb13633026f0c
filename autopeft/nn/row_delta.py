"""A trainable change of some output rows of a linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autopeft.errors import DataError

__all__ = ["RowDelta"]


class RowDelta(nn.Module):
    """x ↦ Δ·x + β with Δ (out × in) and β (out) zero outside of k rows.

    `values` (k, in) and, where the map has one, `bias` (k,) start at zero; `index` (k,) holds the rising
    numbers of the rows, at first the first ones. Neither forward nor backward computes anything for other
    rows than these.
    """

    index: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, k: int, *, bias: bool) -> None:
        super().__init__()
        self.out_features = out_features
        self.values = nn.Parameter(torch.zeros(k, in_features))
        self.bias = nn.Parameter(torch.zeros(k)) if bias else None
        self.register_buffer("index", torch.arange(k))

    def hold(self, index: Tensor, values: Tensor, bias: Tensor | None) -> None:
        """Consist of copies of these values at these rows from now on."""
        order = index.argsort()
        self.index = index[order]
        self.values = nn.Parameter(values.detach()[order].clone())
        if self.bias is not None and bias is not None:
            self.bias = nn.Parameter(bias.detach()[order].clone())

    def check(self) -> None:
        """Raise DataError where the rows are none of the map's, as in a damaged file."""
        edges = self.index.new_tensor([-1]), self.index.new_tensor([self.out_features])
        around = torch.cat([edges[0], self.index, edges[1]])
        if not bool((around[1:] > around[:-1]).all()):
            raise DataError(
                f"The {len(self.index):,} rows of a change must rise and lie in [0, {self.out_features:,}), "
                "but they do not; the file that they were loaded from is damaged."
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, self.values, self.bias)
        if len(self.index) == self.out_features:
            return inner
        return inner.new_zeros(*x.shape[:-1], self.out_features).index_copy(-1, self.index, inner)

    def added_to(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A map's weight (out, in) and bias (out,) with the change in them: new tensors."""
        whole = weight.index_add(0, self.index, self.values.to(weight.dtype))
        if bias is None or self.bias is None:
            return whole, bias
        return whole, bias.index_add(0, self.index, self.bias.to(bias.dtype))

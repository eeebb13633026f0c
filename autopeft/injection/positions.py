"""Some positions of each row of a batch: taken out, and spread out again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Position", "spread", "spread_first", "take"]

Position = int | Tensor  # one, the same for all rows; one for each, (batch,); or several, (batch, k)


def take(x: Tensor, position: Position, dim: int) -> Tensor:
    """x (1 or batch, …) at the positions of dimension `dim`, which becomes 1 or k long."""
    if isinstance(position, int):
        return x.narrow(dim, position, 1).contiguous()  # a strided one makes slow products
    x = x.expand(len(position), *x.shape[1:])
    return x.gather(dim, _index(position, x, dim))


def spread(y: Tensor, position: Position, length: int, dim: int) -> Tensor:
    """The inverse of `take`: `length` long in dimension `dim`, zero elsewhere."""
    if isinstance(position, int):
        behind = [0, 0] * (y.ndim - 1 - dim)
        return torch.nn.functional.pad(y, [*behind, position, length - position - 1])
    full = y.new_zeros(*y.shape[:dim], length, *y.shape[dim + 1 :])
    return full.scatter(dim, _index(position, y, dim), y)


def spread_first(output: Any, position: Position, length: int) -> Any:
    """A module's output with its states, the first of a tuple, spread out again."""
    y: Tensor = output[0] if isinstance(output, tuple) else output
    full = spread(y, position, length, 1)
    return (full, *output[1:]) if isinstance(output, tuple) else full


def _index(position: Tensor, like: Tensor, dim: int) -> Tensor:
    shape, view = [*like.shape], [1] * like.ndim
    view[0], view[dim] = len(position), position.shape[1] if position.ndim == 2 else 1
    shape[dim] = view[dim]
    return position.view(view).expand(shape)

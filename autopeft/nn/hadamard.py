"""The fast Walsh–Hadamard transform."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from autopeft.devices import full_precision

__all__ = ["sylvester", "walsh_hadamard"]

_RADIX = 64  # levels are taken six at a time, as products with a small matrix: far fewer passes over memory
_CHUNK = 1 << 18  # entries transformed at once: what stays in a processor's cache


@lru_cache(maxsize=32)
def sylvester(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Sylvester's Hadamard matrix (order × order): entry (i, j) is −1 to the power of popcount(i & j).

    Symmetric, H·H = order·I; its leading block of half the order is the matrix of that order.
    """
    with torch.inference_mode(False):  # it is kept, and must serve later forwards that have gradients
        h = torch.ones(1, 1, dtype=dtype, device=device)
        while len(h) < order:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def walsh_hadamard(x: Tensor, length: int | None = None, keep: int | None = None) -> Tensor:
    """The first `keep` entries of H·[x; 0], x (n,), H Sylvester's matrix of order `length`, not normalised.

    `length` is a power of two, n by default; `keep` is `length` by default. H is never made: the cost grows
    like length·log(length), and is less where x is short or few entries are kept. Exact up to the rounding of
    sums in the dtype of x, also under autocast (where products may use TF32, up to its rounding).
    Differentiable, any number of times.

    Raises:
        ValueError: x is no vector, `length` is no power of two or shorter than x, or `keep` exceeds it.
    """
    n = x.numel()
    length = n if length is None else length
    keep = length if keep is None else keep
    if x.ndim != 1 or length < 1 or length & (length - 1) or not 1 <= n <= length or not 1 <= keep <= length:
        raise ValueError(
            "walsh_hadamard() needs a vector, a power of two no less than its length, and 1 ≤ keep ≤ length, "
            f"but got shape {tuple(x.shape)}, {length=}, {keep=}."
        )
    out: Tensor = _Transform.apply(x, length, keep)
    return out


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, length: int, keep: int) -> Tensor:
        ctx.sizes = len(x), length
        with full_precision(x.device):
            return _transform(x, length, keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        n, length = ctx.sizes
        return _Transform.apply(grads[0], length, n), None, None


def _transform(x: Tensor, length: int, keep: int) -> Tensor:
    """H = H_radix ⊗ H_block on the vector as rows of a block each. The factors may act in either order: the
    longer one on the fewer rows, since rows of zeros and rows that nobody asks for are left out."""
    radix = min(_RADIX, length)
    block = length // radix
    given, wanted = -(-len(x) // block), -(-keep // block)
    mix = sylvester(radix, x.dtype, x.device)[:wanted, :given]
    if given > wanted:
        rows = mix @ _padded(x, given * block).reshape(given, block)
        _rowwise_(rows)
    else:
        rows = _padded(x, given * block, copy=True).view(given, block)
        _rowwise_(rows)
        rows = mix @ rows
    return rows.view(-1)[:keep]


def _padded(x: Tensor, length: int, *, copy: bool = False) -> Tensor:
    if len(x) == length and not copy:
        return x
    padded = x.new_empty(length)
    padded[: len(x)] = x
    padded[len(x) :] = 0
    return padded


def _rowwise_(rows: Tensor) -> None:
    """The transform of each row (a power of two long), in place."""
    size = rows.shape[1]
    for chunk in rows.split(max(1, _CHUNK // size)):
        x, stride = chunk, 1
        while stride < size:
            radix = min(_RADIX, size // stride)
            h = sylvester(radix, rows.dtype, rows.device)
            x = x.reshape(-1, radix) @ h if stride == 1 else h @ x.reshape(-1, radix, stride)
            stride *= radix
        if x is not chunk:
            chunk.copy_(x.reshape(chunk.shape))

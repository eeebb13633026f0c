"""The Fastfood transform: a random projection that is fast and kept small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autopeft.nn.hadamard import walsh_hadamard
from autopeft.nn.seeds import generator_of

__all__ = ["Fastfood"]

_CHUNK = 1 << 18
_SHORT = 1 << 15


class Fastfood:
    """F(z) = (H·G·Π·H·B·[z; 0])[:size] / √(size·Σ G²): z (dimension,) → (size,), linear, ‖F(z)‖ ≈ ‖z‖.

    Le, Sarlós & Smola 2013 (ICML), scaled as by Aghajanyan et al. 2021 (arXiv:2012.13255). H is Sylvester's
    Hadamard matrix of order n, the least power of two from `size` on; B = diag(±1), the permutation Π and
    G = diag(N(0, 1)) are frozen, drawn from `seed` and `name`. Of a z longer than n the first n entries act.

    H·B·[z; 0] repeats after p entries, p the least power of two from the length of z on. So the first
    transform has order p only, and of Π the values modulo p suffice. With these and a G rounded to bfloat16,
    4 bytes are kept for each of the n entries (6 where p > 32,768). They are drawn at the first use; copies
    of an object share them, pickles leave them out, and they follow z from device to device. The draws are
    torch's, which promises the same ones within a release.
    """

    def __init__(self, size: int, dimension: int, seed: int, name: str) -> None:
        self.size, self.seed, self.name = size, seed, name
        self.length = 1 << (size - 1).bit_length()
        self.used = min(dimension, self.length)
        self.period = 1 << (self.used - 1).bit_length()
        self._drawn: tuple[Tensor, Tensor, Tensor, float] | None = None

    def __call__(self, z: Tensor, scale: Tensor, *, reference_grad: bool = False) -> Tensor:
        """scale·F(z), (size,), in fp32 at least. `reference_grad` divides the gradient of z by n."""
        out: Tensor = _Scaled.apply(z, scale, self, reference_grad)
        return out

    def forward(self, z: Tensor) -> Tensor:
        """F(z), without gradients."""
        signs, places, gauss, scale = self._frozen(z.device)
        z = z[: self.used].to(torch.promote_types(z.dtype, torch.float32))
        repeated = walsh_hadamard(z * signs * scale, self.period)
        spread = z.new_empty(self.length)
        for part, place, g in zip(*(t.split(_CHUNK) for t in (spread, places, gauss)), strict=True):
            torch.mul(repeated.index_select(0, place.int()), g, out=part)
        return walsh_hadamard(spread, keep=self.size)

    def adjoint(self, y: Tensor) -> Tensor:
        """Fᵀ(y), (size,) → (used,), without gradients."""
        signs, places, gauss, scale = self._frozen(y.device)
        spread = walsh_hadamard(y, self.length)
        folded = y.new_zeros(self.period)
        for part, place, g in zip(*(t.split(_CHUNK) for t in (spread, places, gauss)), strict=True):
            folded.index_add_(0, place.int(), part * g)
        return walsh_hadamard(folded, keep=self.used) * signs * scale

    def _frozen(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, float]:
        """B (used,), Π modulo the period (n,), G (n,) and 1/√(size·Σ G²)."""
        if self._drawn is None:
            self._drawn = self._draw()
        if self._drawn[0].device != device:
            signs, places, gauss, scale = self._drawn
            self._drawn = signs.to(device), places.to(device), gauss.to(device), scale
        return self._drawn

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, float]:
        generator = generator_of(self.seed, self.name)
        n, cpu = self.length, torch.device("cpu")
        places = torch.randperm(n, generator=generator, dtype=torch.int32, device=cpu)
        places = places.bitwise_and_(self.period - 1)
        gauss = torch.randn(n, generator=generator, device=cpu, dtype=torch.float32).bfloat16()
        signs = torch.randint(0, 2, (self.used,), generator=generator, device=cpu).float().mul_(2).sub_(1)
        squares = sum(float(g.double().square().sum()) for g in gauss.split(_CHUNK))
        return (
            signs,
            places.short() if self.period <= _SHORT else places,
            gauss,
            (self.size * squares) ** -0.5,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Fastfood:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": None}


class _Scaled(torch.autograd.Function):
    """scale·F(z). Nothing of the length of F(z) is kept for the backward: ⟨g, F(z)⟩ = ⟨Fᵀ(g), z⟩."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, scale: Tensor, fastfood: Fastfood, reference_grad: bool) -> Tensor:
        ctx.save_for_backward(z, scale)
        ctx.fastfood, ctx.reference_grad = fastfood, reference_grad
        return fastfood.forward(z).mul_(scale)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, scale = ctx.saved_tensors
        fastfood: Fastfood = ctx.fastfood
        back = fastfood.adjoint(grad)
        for_scale = torch.dot(back, z[: fastfood.used].to(back.dtype)).to(scale.dtype)
        for_z = torch.zeros_like(z)
        for_z[: fastfood.used] = back * scale / (fastfood.length if ctx.reference_grad else 1)
        return for_z, for_scale, None, None

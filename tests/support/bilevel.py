"""A bilevel problem of two closures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Loss", "ToyStep"]

Loss = Callable[[], Tensor]


class ToyStep:
    """A bilevel problem of two closures; remembers what was asked for."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], rates: Sequence[float], lower: Loss, upper: Loss
    ) -> None:
        self.parameters, self.rates = parameters, rates
        self.losses = {"lower": lower, "upper": upper}
        self.asked: list[tuple[str, int]] = []

    def lower(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        return self._gradient("lower", wanted)

    def upper(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        return self._gradient("upper", wanted)

    def _gradient(self, level: str, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        self.asked.append((level, len(wanted)))
        with torch.enable_grad():
            found = torch.autograd.grad(self.losses[level](), list(wanted), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]

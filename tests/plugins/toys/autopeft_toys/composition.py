"""A composition: the mean of what its children add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from autopeft.composition import CompositionTraits, NoOptions, Sum, register
from autopeft.method import Call, ParameterCount
from autopeft.spec import Site


@register("toy_mean")
class Mean(nn.Module):
    """y + (Σ δᵢ) / n."""

    summary = "the mean of what its children add"
    traits = CompositionTraits(rowwise=True)
    Options = NoOptions

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    @classmethod
    def check(cls, children: Any, options: NoOptions) -> None:
        return None

    @classmethod
    def parameter_count(cls, children: Any, options: Any) -> ParameterCount:
        return ParameterCount(0, 0)

    @classmethod
    def build(cls, children: Any, options: NoOptions) -> Mean:
        return cls(len(children))

    def delta(self, site: Site, children: Sequence[Any], x: Tensor, y: Tensor, call: Call) -> Tensor:
        return Sum().delta(site, children, x, y, call) / self.n

    def weight(self, target: Any, children: Sequence[Any], original: Tensor, current: Tensor) -> Tensor:
        return current + (Sum().weight(target, children, original, original) - original) / self.n

    def key_value(self, site: Site, children: Sequence[Any], x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        return Sum().key_value(site, children, x, call)

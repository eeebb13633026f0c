"""LoRA: low-rank adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from autopeft.method import MethodConfig, ParameterCount, Traits, register
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["LoRA"]


@register("lora")
class LoRA:
    """y = W₀x + b₀ + s·B·A·dropout(x), s = α/r (α/√r with `rank_stabilized`).

    Hu et al. 2022, arXiv:2106.09685, eq. 3; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. A (r × in) is
    Kaiming-uniform (a = √5), B (out × r) is zero: the identity at init. Behind a gate the gate takes the
    place of s (UniPELT). Mergeable. r·(in + out) parameters for each site.
    """

    traits = Traits(
        injection="hook",
        sites=LINEAR_SITES,
        default_sites=("q", "v"),
        mergeable=True,
        stochastic=True,
        rowwise=True,
    )

    size_field: ClassVar[str] = "rank"

    class Config(MethodConfig):
        rank: int = Field(default=8, ge=1, le=1024)
        alpha: float | None = Field(default=None, gt=0, le=4096, description="α; default 2·rank")
        dropout: float = Field(default=0.0, ge=0, lt=1)
        rank_stabilized: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def scale(self) -> float:
        c = self.config
        alpha = 2.0 * c.rank if c.alpha is None else c.alpha
        return float(alpha / (c.rank**0.5 if c.rank_stabilized else c.rank))

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.rank * (s.in_features + s.out_features) for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {s.key: LowRankPair(s.in_features, s.out_features, c.rank, dropout=c.dropout) for s in sites}
        return ScaledPairs(pairs, self.scale)

"""MoSLoRA: a trained mixer between LoRA's factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import MethodConfig, ParameterCount, Traits, register
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["MoSLoRA"]

Mixer = Literal["kaiming", "orthogonal"]


class MixedPair(LowRankPair):
    """x ↦ B·M·A·dropout(x) with M (rank × rank)."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, *, mixer: Mixer, dropout: float
    ) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        self.M = nn.Parameter(torch.empty(rank, rank))
        if mixer == "kaiming":
            nn.init.kaiming_uniform_(self.M, a=math.sqrt(5))
        else:
            nn.init.orthogonal_(self.M)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        inner = nn.functional.linear(nn.functional.linear(x, self.A), self.M)
        return nn.functional.linear(inner, self.B)

    def product(self) -> Tensor:
        """B·M·A, (out × in)."""
        return self.B @ (self.M @ self.A)


@register("moslora")
class MoSLoRA:
    """y = W₀x + b₀ + s·B·M·A·dropout(x), s = α/r; M (r × r) is trained and mixes the r rank-one subspaces.

    Wu et al. 2024, arXiv:2406.11909. A (r × in) and M are Kaiming-uniform (a = √5), or M is `orthogonal`; B
    (out × r) is zero: the identity at init. A and M get no gradient before B has left zero. With M = I it is
    LoRA. Behind a gate the gate takes the place of s. Mergeable. r·(in + out) + r² parameters for each site.
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
        mixer: Mixer = Field(default="kaiming", description="how M starts")
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def scale(self) -> float:
        c = self.config
        return 2.0 if c.alpha is None else float(c.alpha / c.rank)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        r = self.config.rank
        n = sum(r * (s.in_features + s.out_features + r) for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {
            s.key: MixedPair(s.in_features, s.out_features, c.rank, mixer=c.mixer, dropout=c.dropout)
            for s in sites
        }
        return ScaledPairs(pairs, self.scale)

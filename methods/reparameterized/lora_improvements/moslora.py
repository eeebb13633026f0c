"""MoSLoRA: a trained mixer between LoRA's factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Linear, Narrow, ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import BackboneSpec, Site

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

    def down(self) -> Tensor:
        """M·A, (rank × in)."""
        return self.M @ self.A


@register("moslora")
class MoSLoRA(LowRankMethod):
    """y = W₀x + b₀ + s·B·M·A·dropout(x), s = α/r; M (r × r) is trained and mixes the r rank-one subspaces.

    Wu et al. 2024, arXiv:2406.11909. A (r × in) and M are Kaiming-uniform (a = √5), or M is `orthogonal`; B
    (out × r) is zero: the identity at init. A and M get no gradient before B has left zero. With M = I it is
    LoRA. Behind a gate the gate takes the place of s. Mergeable. r·(in + out) + r² parameters for each site.
    """

    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"rank": {**LowRankPair.by_rank, "M": (0, 1)}}
    linear_in: ClassVar[Linear] = LowRankPair.linear_in

    class Config(LowRankConfig):
        mixer: Mixer = Field(default="kaiming", description="how M starts")

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
        return ScaledPairs(pairs, c.scale)

"""LoRA: low-rank adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from autopeft.method import Linear, Narrow, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import BackboneSpec, Site

__all__ = ["LoRA"]


@register("lora")
class LoRA(LowRankMethod):
    """y = W₀x + b₀ + s·B·A·dropout(x), s = α/r (α/√r with `rank_stabilized`).

    Hu et al. 2022, arXiv:2106.09685, eq. 3; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. A (r × in) is
    Kaiming-uniform (a = √5), or N(0, std²), B (out × r) is zero: the identity at init. Behind a gate the gate
    takes the place of s (UniPELT). Mergeable. r·(in + out) parameters for each site.
    """

    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"rank": LowRankPair.by_rank}
    linear_in: ClassVar[Linear] = LowRankPair.linear_in

    class Config(LowRankConfig):
        rank_stabilized: bool = False
        std: float | None = Field(default=None, gt=0, le=1, description="A is N(0, std²); default: Kaiming")

        @property
        def scale(self) -> float:
            return super().scale * (self.rank**0.5 if self.rank_stabilized else 1.0)

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of A (`down`) or B (`up`) at a site."""
        rank, widths = int(self.config.rank), {"down": site.in_features, "up": site.out_features}
        return rank * widths[part] if part in widths else None

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {
            s.key: LowRankPair(s.in_features, s.out_features, c.rank, dropout=c.dropout, std=c.std)
            for s in sites
        }
        return ScaledPairs(pairs, c.scale)

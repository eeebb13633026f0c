"""LoRA: low-rank adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from autopeft.method import Linear, Narrow, ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import Down, JoinedPair, JoinedPairs, LowRankPair, ScaledPairs
from autopeft.spec import BackboneSpec, Site

__all__ = ["LoRA"]


def _reading(site: Site) -> str:
    """What a site's map reads: q, k and v of a layer read the same."""
    return f"{site.stack}-{site.layer}-qkv" if site.name in ("q", "k", "v") else site.key


@register("lora")
class LoRA(LowRankMethod):
    """y = W₀x + b₀ + s·B·A·dropout(x), s = α/r (α/√r with `rank_stabilized`).

    Hu et al. 2022, arXiv:2106.09685, eq. 3; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732. A (r × in) is
    Kaiming-uniform (a = √5), or N(0, std²), B (out × r) is zero: the identity at init. Behind a gate the gate
    takes the place of s (UniPELT). With `shared_down` q, k and v of a layer read one A and have each a B, as
    a LoRA on one map of all three has it (NOAH, arXiv:2206.04673); dropout is drawn for each by itself.
    Mergeable. r·(in + out) parameters for each site; with `shared_down` r·in once for q, k and v.
    """

    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"rank": LowRankPair.by_rank}
    linear_in: ClassVar[Linear] = LowRankPair.linear_in

    class Config(LowRankConfig):
        rank_stabilized: bool = False
        std: float | None = Field(default=None, gt=0, le=1, description="A is N(0, std²); default: Kaiming")
        shared_down: bool = Field(default=False, description="one A for q, k and v of a layer")

        @property
        def scale(self) -> float:
            return super().scale * (self.rank**0.5 if self.rank_stabilized else 1.0)

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of A (`down`) or B (`up`) at a site; `None` of an A that others read too."""
        if part == "down" and self.config.shared_down:
            return None
        rank, widths = int(self.config.rank), {"down": site.in_features, "up": site.out_features}
        return rank * widths[part] if part in widths else None

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        if not self.config.shared_down:
            return super().parameter_count(sites, spec)
        read = {_reading(site): site.in_features for site in sites}
        n = self.config.rank * (sum(read.values()) + sum(site.out_features for site in sites))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        if c.shared_down:
            downs: dict[str, Down] = {}
            for s in sites:
                if _reading(s) not in downs:
                    downs[_reading(s)] = Down(s.in_features, c.rank, std=c.std)
            joined = {s.key: JoinedPair(downs[_reading(s)], s.out_features, dropout=c.dropout) for s in sites}
            return JoinedPairs(joined, downs, c.scale)
        pairs = {
            s.key: LowRankPair(s.in_features, s.out_features, c.rank, dropout=c.dropout, std=c.std)
            for s in sites
        }
        return ScaledPairs(pairs, c.scale)

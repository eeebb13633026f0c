"""VeRA: vector-based random matrix adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, Linear, MethodConfig, ParameterCount, register
from autopeft.method.low_rank import LowRankMethod
from autopeft.nn import PerSite
from autopeft.spec import BackboneSpec, Site

__all__ = ["VeRA"]


class VeRAVectors(nn.Module):
    """What a site trains: d (rank) and b (out), constant and zero at init."""

    def __init__(self, out_features: int, rank: int, d_initial: float) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.full((rank,), d_initial))
        self.b = nn.Parameter(torch.zeros(out_features))


class VeRAModule(PerSite[VeRAVectors]):
    """Two vectors for each site around one frozen pair A, B for all of them.

    The pair is as wide as the widest site; a site takes its first columns of A and first rows of B. It is
    drawn again from the seed instead of being saved.
    """

    A: Tensor
    B: Tensor

    def __init__(self, sites: Sequence[Site], config: VeRA.Config) -> None:
        rank = config.rank
        super().__init__({s.key: VeRAVectors(s.out_features, rank, config.d_initial) for s in sites})
        self.dropout = config.dropout
        generator = torch.Generator().manual_seed(config.seed)
        shapes = {
            "A": (rank, max(s.in_features for s in sites)),
            "B": (max(s.out_features for s in sites), rank),
        }
        for name, shape in shapes.items():
            # Whatever torch's defaults are: a reload must draw the same pair.
            empty = torch.empty(shape, dtype=torch.float32, device="cpu")
            drawn = nn.init.kaiming_uniform_(empty, generator=generator)
            self.register_buffer(name, drawn, persistent=False)

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def pair(self, site: Site) -> tuple[Tensor, Tensor]:
        """The site's part of the frozen pair: A (rank, in) and B (out, rank)."""
        return self.A[:, : site.in_features], self.B[: site.out_features]

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        own, (a, b) = self[site], self.pair(site)
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, a) * own.d, b) * own.b

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        own, (a, b) = self[site], self.pair(site)
        return weight + (own.b[:, None] * b) @ (own.d[:, None] * a), bias

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"d": [own.d for own in self.children_by_site()], "b": self.up_parameters()}

    def up_parameters(self) -> list[nn.Parameter]:
        return [own.b for own in self.children_by_site()]


@register("vera")
class VeRA(LowRankMethod):
    """y = W₀x + b₀ + Λ_b·B·Λ_d·A·dropout(x), where Λ_b = diag(b) and Λ_d = diag(d) are all that trains.

    Kopiczko et al. 2024, arXiv:2310.11454, eq. 2. A (r × in) and B (out × r) are frozen, shared by all sites
    of the entry and Kaiming-uniform (a = 0) from `seed`; the pair is as wide as the widest site, and each
    takes its slice. It is not counted and not saved: a reload draws it again. Entries with one seed, rank and
    largest widths draw the same pair. d (r) is `d_initial`, b (out) zero: the identity at init. Both scale
    the change, not W₀, and decay towards zero. There is no scale that a gate could replace. Mergeable. out +
    r parameters for each site.
    """

    part_names = ("d", "b")
    frozen_by = ("seed",)
    linear_in: ClassVar[Linear] = {"b": 0.0}

    class Config(MethodConfig):
        rank: int = Field(default=256, ge=1, le=4096)
        d_initial: float = Field(default=0.1, gt=0, le=1, description="every entry of d at init")
        dropout: float = Field(default=0.0, ge=0, lt=1)
        seed: int = Field(default=0, ge=0, lt=2**32, description="where the frozen pair is drawn from")

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(s.out_features + self.config.rank for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return VeRAModule(sites, self.config)

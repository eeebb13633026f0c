"""CapaBoost: several masked copies of one pair of LoRA factors, of a higher rank at no further parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.method import ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import MaskedCopies, Masks, ScaledMaps, down_and_up
from autopeft.spec import BackboneSpec, Site

__all__ = ["CapaBoost"]


class BoostedPair(nn.Module):
    """x ↦ Σᵢ (B ⊙ M_Bᵢ)·(A ⊙ M_Aᵢ)·dropout(x), (…, in) → (…, out), as one pair of rank copies·rank."""

    def __init__(self, a: Masks, b: Masks, dropout: float) -> None:
        super().__init__()
        start = torch.empty(a.rows, a.columns)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        self.A = MaskedCopies(a, start)
        self.B = MaskedCopies(b, torch.zeros(b.rows, b.columns))
        self.dropout = dropout

    def factors(self) -> tuple[Tensor, Tensor]:
        """The copies side by side: A (copies·rank, in) and B (out, copies·rank)."""
        return self.A().flatten(0, 1), self.B().movedim(0, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        a, b = self.factors()
        return nn.functional.linear(nn.functional.linear(x, a), b)

    def product(self) -> Tensor:
        """Σᵢ (B ⊙ M_Bᵢ)·(A ⊙ M_Aᵢ), (out × in)."""
        a, b = self.factors()
        return b @ a


class CapaBoostModule(ScaledMaps[BoostedPair]):
    """Boosted factors for each site."""

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """All copies as one pair (see `ScaledPairs`)."""
        return *self[site].factors(), self.scale

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return down_and_up(self, self.up_parameters())

    def up_parameters(self) -> list[nn.Parameter]:
        return [pair.B.values for pair in self.children_by_site()]


@register("capaboost")
class CapaBoost(LowRankMethod):
    """y = W₀x + b₀ + s·Σᵢ (B ⊙ M_Bᵢ)·(A ⊙ M_Aᵢ)·dropout(x), i = 1…D, s = α/r: one A (r × in) and B (out × r)
    in D masked copies.

    Song et al. 2024, arXiv:2407.01320, on the host LoRA (adapters and prefixes as hosts are not built). Each
    mask has exactly ⌊ρ·size⌋ ones at random places (`density` ρ), or two in each four entries of a row
    (`pattern: 2:4`), independent for each factor, copy and site; they come from `seed`, stay fixed and are
    not saved; of two entries at a site each wants a seed of its own. ΔW has rank up to D·r. A is
    Kaiming-uniform (a = √5), B zero: the identity at init; with D = ρ = 1 it is LoRA. An entry in no mask
    does not exist. Behind a gate the gate takes the place of s. Mergeable.

    Parameters: the entries in at least one mask, exactly, about (1 − (1 − ρ)ᴰ)·r·(in + out) for each site.
    """

    frozen_by = ("copies", "density", "pattern", "seed")

    peft = PeftFormat("lora")

    class Config(LowRankConfig):
        copies: int = Field(default=2, ge=1, le=16, description="D")
        density: float = Field(default=0.5, gt=0, le=1, description="ρ, the share of ones in each mask")
        pattern: Literal["random", "2:4"] = "random"
        seed: int = Field(default=0, ge=0, lt=2**32, description="where the masks are drawn from")

        @model_validator(mode="after")
        def _pattern_has_its_density(self) -> CapaBoost.Config:
            if self.pattern == "2:4" and self.density != 0.5:
                raise ValueError(f"pattern '2:4' has density 0.5, but got {self.density}; leave density out")
            return self

    @property
    def change_rank(self) -> int:
        return int(self.config.copies * self.config.rank)

    def _masks(self, site: Site) -> tuple[Masks, Masks]:
        """Of A and B at a site."""
        c = self.config
        rest = (c.copies, c.density, c.pattern)
        return (
            Masks(c.seed, site.path, "A", c.rank, site.in_features, *rest),
            Masks(c.seed, site.path, "B", site.out_features, c.rank, *rest),
        )

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(masks.used() for site in sites for masks in self._masks(site))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        pairs = {s.key: BoostedPair(*self._masks(s), self.config.dropout) for s in sites}
        return CapaBoostModule(pairs, self.config.scale)

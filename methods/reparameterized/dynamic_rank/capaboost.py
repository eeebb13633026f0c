"""CapaBoost: several masked copies of one pair of LoRA factors, of a higher rank at no further parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import ScaledMaps, down_and_up, generator_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["CapaBoost"]


class Masks(NamedTuple):
    """The random masks of copies of one matrix, by all that they depend on: they are drawn, never saved.

    Attributes:
        seed, site, name: where they are drawn from: a seed, a site's path and the matrix's name there.
        rows, columns: the matrix's shape.
        copies: how many masks.
        density: the share of ones in each, rounded down to whole entries.
        pattern: `random` places, or two in each four entries of a row (`2:4`).
    """

    seed: int
    site: str
    name: str
    rows: int
    columns: int
    copies: int
    density: float
    pattern: Literal["random", "2:4"]

    def draw(self) -> Tensor:
        """The masks, bool (copies, rows, columns), each drawn independently of the others.

        Raises:
            MethodError: a mask would be empty, or the columns are not in fours.
        """
        total = self.rows * self.columns
        # Whatever torch's default device is: the places must be known to count them.
        with torch.device("cpu"):
            generator = generator_of(self.seed, self.site, self.name)
            if self.pattern == "2:4":
                if self.columns % 4:
                    raise MethodError(
                        f"Masks of pattern '2:4' keep two of each four columns, but {self.name} at "
                        f"{self.site} is ({self.rows} × {self.columns}); take a rank and sites whose widths "
                        "are multiples of 4, or pattern 'random'."
                    )
                order = torch.rand(self.copies, total // 4, 4, generator=generator).argsort(-1)
                return (order < 2).view(self.copies, self.rows, self.columns)
            kept = int(self.density * total)
            if not kept:
                raise MethodError(
                    f"Masks of density={self.density} keep no entry of {self.name} at {self.site} "
                    f"({self.rows} × {self.columns}); raise density or rank."
                )
            masks = torch.zeros(self.copies, total, dtype=torch.bool)
            for mask in masks:
                mask[torch.randperm(total, generator=generator)[:kept]] = True
            return masks.view(self.copies, self.rows, self.columns)


@lru_cache(maxsize=1 << 16)
def entries_in_use(masks: Masks) -> int:
    """How many entries are in at least one mask."""
    return int(masks.draw().any(dim=0).sum())


class MaskedCopies(nn.Module):
    """Copies (copies, rows, columns) of one matrix, each under its mask.

    `values` (k,) holds the entries in at least one mask, in their order; the others do not exist. Which they
    are and which copy holds which, (copies, k), is drawn from the seed and not saved.
    """

    held: Tensor
    index: Tensor

    def __init__(self, masks: Masks, matrix: Tensor) -> None:
        super().__init__()
        drawn = masks.draw().flatten(1)
        index = drawn.any(dim=0).nonzero().flatten()
        self.register_buffer("held", drawn[:, index], persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.values = nn.Parameter(matrix.flatten()[index])
        self.shape = matrix.shape

    def forward(self) -> Tensor:
        flat = self.values.new_zeros(len(self.held), self.shape.numel())
        copies = flat.scatter(1, self.index.expand(len(self.held), -1), self.values * self.held)
        return copies.view(-1, *self.shape)


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
        n = sum(entries_in_use(masks) for site in sites for masks in self._masks(site))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        pairs = {s.key: BoostedPair(*self._masks(s), self.config.dropout) for s in sites}
        return CapaBoostModule(pairs, self.config.scale)

"""DoRA: weight-decomposed low-rank adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import (
    DecayTarget,
    MethodConfig,
    Narrow,
    ParameterCount,
    PeftFormat,
    Traits,
    WeightTarget,
    register,
)
from autopeft.nn import LowRankPair, PerSite
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["DoRA"]


class DoRAPair(LowRankPair):
    """A low-rank pair with a magnitude for each output row; weights are (out, in).

    The buffer `pretrained` (out) keeps the magnitudes at init; it is not saved.
    """

    pretrained: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(in_features, out_features, rank)
        self.magnitude = nn.Parameter(torch.ones(out_features))
        self.register_buffer("pretrained", torch.ones(out_features), persistent=False)

    @staticmethod
    def norms(weight: Tensor) -> Tensor:
        """Norms of the rows, (out,); contiguous first, so that equal values give equal bits in any layout."""
        norms: Tensor = torch.linalg.vector_norm(weight.contiguous(), dim=1)
        return norms

    def direct(self, weight: Tensor, scale: float, *, detach: bool) -> Tensor:
        """m·V/‖V‖ with V = weight + scale·B·A; a row of zeros, which has no direction, stays one."""
        v = weight + scale * self.product()
        norms = self.norms(v)
        norms = torch.where(norms > 0, norms, torch.ones_like(norms))
        return (self.magnitude / (norms.detach() if detach else norms))[:, None] * v


class DoRAModule(PerSite[DoRAPair]):
    """A pair with magnitudes for each site."""

    def __init__(
        self, children: dict[str, DoRAPair], sites: Sequence[Site], scale: float, detach: bool
    ) -> None:
        super().__init__(children)
        self.sites = tuple(sites)
        self.scale = scale
        self.detach_norm = detach

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(site=site) for site in self.sites]

    def initialise(self, target: WeightTarget, weight: Tensor) -> None:
        """Set the magnitudes of `target` to the row norms of the backbone's weight (out, in)."""
        pair = self[cast(Site, target.site)]
        with torch.no_grad():
            pair.magnitude.copy_(pair.norms(weight.to(pair.magnitude.dtype)))
            pair.pretrained.copy_(pair.magnitude)

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        directed = self[cast(Site, target.site)].direct(original, self.scale, detach=self.detach_norm)
        return current + (directed - original).to(current.dtype)

    def as_dora(self, site: Site) -> tuple[Tensor, Tensor, float, Tensor]:
        """The pair that changes the direction (see `ScaledPairs`), and the magnitudes (out,)."""
        pair = self[site]
        return pair.down(), pair.B, self.scale, pair.magnitude

    def parts(self) -> dict[str, list[nn.Parameter]]:
        pairs = self.children_by_site()
        magnitudes = [pair.magnitude for pair in pairs]
        return {"down": [pair.A for pair in pairs], "up": self.up_parameters(), "magnitude": magnitudes}

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """m scales the backbone's weight: towards the row norms of W₀, at which the weight is W₀ again."""
        return {pair.magnitude: pair.pretrained for pair in self.children_by_site()}

    def up_parameters(self) -> list[nn.Parameter]:
        return [pair.B for pair in self.children_by_site()]


@register("dora")
class DoRA:
    """W' = m·V/‖V‖ with V = W₀ + s·B·A, s = α/r; norms over the input of each output row, the bias unscaled.

    Liu et al. 2024, arXiv:2402.09353, eq. 5; the norm is a constant in the gradient (§4.3) unless
    `detach_norm` is false. A (r × in) is Kaiming-uniform (a = √5), B (out × r) zero, m (out) the row norms of
    W₀, which the injection hands to `initialise` at attach and towards which m decays: exactly the identity
    at init. Other deltas of the same weight are added to W' and do not pass the normalisation. A change of
    the weight has no input dropout. Mergeable; r·(in + out) + out parameters for each site.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        sites=LINEAR_SITES,
        default_sites=("q", "v"),
        mergeable=True,
        direction=True,
        gateable=False,
    )
    size_field: ClassVar[str] = "rank"
    part_names = ("down", "up", "magnitude")
    peft = PeftFormat("dora")
    narrow: ClassVar[Narrow] = {"rank": LowRankPair.by_rank}

    class Config(MethodConfig):
        rank: int = Field(default=8, ge=1, le=1024)
        alpha: float | None = Field(default=None, gt=0, le=4096, description="α; default 2·rank")
        detach_norm: bool = Field(default=True, description="treat ‖V‖ as a constant in the gradient")

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def scale(self) -> float:
        c = self.config
        return 2.0 if c.alpha is None else float(c.alpha / c.rank)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        r = self.config.rank
        n = sum(r * (s.in_features + s.out_features) + s.out_features for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        pairs = {s.key: DoRAPair(s.in_features, s.out_features, self.config.rank) for s in sites}
        return DoRAModule(pairs, sites, self.scale, self.config.detach_norm)

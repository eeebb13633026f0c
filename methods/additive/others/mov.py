"""MoV: a mixture of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, DecayTarget, MethodConfig, ParameterCount, Traits, register
from autopeft.nn import PerSite, Router
from autopeft.spec import BackboneSpec, Site

__all__ = ["MoV"]

_PER_HEAD = ("k", "v", "cross_k", "cross_v")


class Vectors(nn.Module):
    """E vectors over `heads` slices of one width, ones at init, and a router that reads a slice.

    A single vector needs no router.
    """

    def __init__(self, experts: int, heads: int, width: int, top_k: int | None) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(experts, heads, width))
        self.router = None if experts == 1 else Router(width, experts, top_k=top_k, renormalize=False)

    def probabilities(self, slices: Tensor) -> Tensor:
        """Weights (…, heads, experts) in fp32 of slices (…, heads, width)."""
        if self.router is None:
            return slices.new_ones((*slices.shape[:-1], 1), dtype=torch.float32)
        p: Tensor = self.router(slices)
        return p

    def forward(self, y: Tensor) -> Tensor:
        """(l − 1)·y for y (…, heads·width), where l is the mixed vector of every slice."""
        slices = y.unflatten(-1, self.factors.shape[1:])
        p = self.probabilities(slices)
        # Σ p·(l − 1) is exactly zero where all factors are one, as Σ p·l − 1 is not.
        offset = torch.einsum("...he,ehd->...hd", p, self.factors.float() - 1.0) + self._missing(p)
        scaled: Tensor = offset.to(y.dtype) * slices
        return scaled.flatten(-2)

    def _missing(self, p: Tensor) -> Tensor | float:
        """What the weights of a choice that is not renormalised lack to 1, below zero."""
        chooses = self.router is not None and self.router.top_k is not None
        return p.sum(dim=-1, keepdim=True) - 1.0 if chooses else 0.0


class MoVModule(PerSite[Vectors]):
    """Vectors and router for each site; δ = (l − 1)·y, on the input of `down`, on the output elsewhere."""

    def side(self, site: Site) -> Literal["input", "output"]:
        return "input" if site.name == "down" else "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](y)
        return out

    def parts(self) -> dict[str, list[nn.Parameter]]:
        vectors = self.children_by_site()
        routers = [p for v in vectors if v.router is not None for p in v.router.parameters()]
        return {"vectors": [v.factors for v in vectors], "router": routers}

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """Factors of the backbone's activations, towards one; the router's weights towards zero."""
        return {vectors.factors: 1.0 for vectors in self.children_by_site()}


@register("mov")
class MoV:
    """l ⊙ y with l = Σₑ pₑ·lₑ and p = softmax(W_g·y) in fp32: E vectors of (IA)³ at a site, mixed softly.

    Zadouri et al. 2024, arXiv:2309.05444. The router reads what is scaled. On keys and values it reads one
    head of one token, with a W_g (E × head width) for all heads of the site; on `down` it reads the whole
    intermediate activation. `top_k` zeroes all but the k largest weights, which do not sum to 1 then (as the
    authors' code has it; none by default, and no load-balance loss). Vectors are ones, W_g is N(0, 0.02): the
    identity at init, unless `top_k` is set. The vectors decay towards one. Not mergeable: `experts: 1` is
    (IA)³ without a router, but only `ia3` itself merges.

    E·(a + d_h) parameters at each of k, v, cross_k and cross_v (a is the width of keys and values, d_h that
    of a head), 2·E·d_ff at `down`.
    """

    traits = Traits(
        ways=frozenset({"hook"}), sites=(*_PER_HEAD, "down"), default_sites=(*_PER_HEAD, "down"), rowwise=True
    )
    size_field: ClassVar[str] = "experts"
    part_names: tuple[str, ...] = ("vectors", "router")

    class Config(MethodConfig):
        experts: int = Field(default=10, ge=1, le=1024, description="E, vectors at each site")
        top_k: int | None = Field(default=None, ge=1, description="vectors that act on a token; default: all")

        @model_validator(mode="after")
        def _enough(self) -> MoV.Config:
            if self.top_k is not None and self.top_k >= self.experts:
                raise ValueError(
                    f"top_k={self.top_k} chooses nothing among experts={self.experts}; "
                    "leave it out to mix all of them"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.experts == 1:
            self.part_names = ("vectors",)
        if config.top_k is not None:
            self.traits = replace(self.traits, identity=False)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        experts, n = self.config.experts, 0
        for heads, width in (_shape(site, spec) for site in sites):
            n += experts * heads * width + (Router.size(width, experts) if experts > 1 else 0)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        return MoVModule({s.key: Vectors(c.experts, *_shape(s, spec), c.top_k) for s in sites})


def _shape(site: Site, spec: BackboneSpec) -> tuple[int, int]:
    """(heads, width of a head) of keys and values, (1, d_ff) of the intermediate activation.

    Raises:
        MethodError: the width of a head is not known.
    """
    if site.name not in _PER_HEAD:
        return 1, site.in_features
    width = spec.stack(site.stack).head_dim
    if not width or site.out_features % width:
        raise MethodError(
            f"mov routes each head of {site.path} for itself, but how wide a head of this {spec.family} "
            "is, is not known; name `sites: [down]`, or take route over ia3."
        )
    return site.out_features // width, width

"""(IA)³: infused adapter by inhibiting and amplifying inner activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from autopeft.method import (
    Call,
    DecayTarget,
    Linear,
    MethodConfig,
    ParameterCount,
    PeftFormat,
    Traits,
    register,
)
from autopeft.nn import PerSite
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["IA3"]


def _side(site: Site) -> Literal["input", "output"]:
    return "input" if site.name == "down" else "output"


def _width(site: Site) -> int:
    return site.in_features if _side(site) == "input" else site.out_features


class Scale(nn.Module):
    """A vector of factors, ones at init."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.ones(width))


class IA3Module(PerSite[Scale]):
    """One vector l for each site; δ = (l − 1)·y, on the input of `down` and the output of the others."""

    def side(self, site: Site) -> Literal["input", "output"]:
        return _side(site)

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return (self[site].factors - 1) * y

    def as_ia3(self, site: Site) -> Tensor:
        """l."""
        factors: Tensor = self[site].factors
        return factors

    def decays(self) -> Mapping[nn.Parameter, DecayTarget]:
        """Factors of the backbone's activations, towards one."""
        return {scale.factors: 1.0 for scale in self.children_by_site()}

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        factors = self[site].factors
        if _side(site) == "input":
            return weight * factors, bias
        return weight * factors[:, None], None if bias is None else bias * factors


@register("ia3")
class IA3:
    """softmax(Q·(l_k ⊙ K)ᵀ/√d_h)·(l_v ⊙ V), and (l_ff ⊙ φ(x·W₁))·W₂ in the FFN (its gated product alike).

    Liu et al. 2022, arXiv:2205.05638. Factors start at one, towards which they decay: the identity at init.
    On `down` the input is scaled, on every other site the output, so k, v, cross_k, cross_v and down are the
    paper's set. Mergeable: rows of weight and bias, or columns on the input side. One parameter for each
    scaled feature: 2a + d_ff in a layer, 4a + d_ff with cross-attention (a is the width of keys and values).
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=LINEAR_SITES,
        default_sites=("k", "v", "cross_k", "cross_v", "down"),
        mergeable=True,
        rowwise=True,
    )
    peft = PeftFormat("ia3")
    linear_in: ClassVar[Linear] = {"factors": 1.0}

    class Config(MethodConfig):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(map(_width, sites))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return IA3Module({s.key: Scale(_width(s)) for s in sites})

"""Compacter: adapters made of low-rank hypercomplex (PHM) layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, ParameterCount, Traits, WeightTarget, register
from autopeft.nn import (
    ACTIVATIONS,
    Activation,
    LowRankKronecker,
    PerSite,
    TensorDeltas,
    norms_around,
    require_blocks,
)
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["Compacter"]


class PHMLinear(LowRankKronecker):
    """x ↦ x·H + b, H = Σᵢ Aᵢ ⊗ (lᵢ·rᵢ), (…, in) → (…, out), for rules A that are handed over; b is zero at
    init."""

    def __init__(self, n: int, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(n, in_features, out_features, rank, gain=math.sqrt(2))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor, rules: Tensor) -> Tensor:
        return x @ self.matrix(rules) + self.bias


class PHMBottleneck(nn.Module):
    """φ(x·H_dn + b_dn)·H_up + b_up, (…, width) → (…, width)."""

    def __init__(self, width: int, config: Compacter.Config) -> None:
        super().__init__()
        self.down = PHMLinear(config.phm_dim, width, config.bottleneck, config.rank)
        self.up = PHMLinear(config.phm_dim, config.bottleneck, width, config.rank)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, rules: Tensor) -> Tensor:
        out: Tensor = self.up(self.activation(self.down(x, rules)), rules)
        return out


class CompacterModule(PerSite[PHMBottleneck]):
    """A PHM bottleneck for each site, the rules that all of them read, and deltas of the trained norms."""

    def __init__(self, children: dict[str, PHMBottleneck], n: int, norms: Sequence[TensorSpec]) -> None:
        super().__init__(children)
        self.rules = nn.Parameter(torch.randn(n, n, n) * 1e-4)
        self.norms = TensorDeltas(norms)

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return y

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](y, self.rules)
        return out

    def weight_targets(self) -> Sequence[WeightTarget]:
        return [WeightTarget(tensor=name) for name in self.norms.names]

    def weight(self, target: WeightTarget, original: Tensor, current: Tensor) -> Tensor:
        return self.norms.apply_to(str(target.tensor), current)


@register("compacter")
class Compacter:
    """y' = y + φ(y·H_dn + b_dn)·H_up + b_up with H = Σᵢ Aᵢ ⊗ (lᵢ·rᵢ), i = 1…n; y is a sub-layer's output.

    Karimi Mahabadi et al. 2021, arXiv:2106.04647. The n rules Aᵢ (n × n) are shared by both
    projections of all adapters of the entry; lᵢ (in/n × q) and rᵢ (q × out/n) are each projection's own, q is
    `rank`. `compacter` (the default) sits after attention and FFN, `compacter_plus_plus` after the FFN only.
    A is N(0, 1e-4), l and r are Glorot-uniform with gain √2, biases zero: so close to the identity that fp32
    hardly shows the difference, yet not exactly. n must divide the width d and the bottleneck k. φ is the
    exact GELU. Not mergeable.

    As in the paper, gains and biases of norms are trained too, as zero-initialised deltas (`train_norms`):
    those of the layers that the entry sits in, and if these are all layers, those outside of them as well (an
    embedding's, a final norm). Behind a gate this must be off. Each entry has rules of its own.

    2q(d + k) + d + k parameters for each site, n³ for the rules, once, and those of the trained norms:
    114,112 + 47,616 for T5-base (n = 4, k = 24, q = 1).
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}),
        sites=("attention", "cross_attention", "ffn"),
        default_sites=("attention", "ffn"),
        rowwise=True,
        identity=False,
    )
    size_field: ClassVar[str] = "bottleneck"

    class Config(MethodConfig):
        variant: Literal["compacter", "compacter_plus_plus"] = "compacter"
        bottleneck: int = Field(default=24, ge=1, le=16384, description="k, a multiple of phm_dim")
        phm_dim: int = Field(default=4, ge=1, le=128, description="n, a divisor of the width")
        rank: int = Field(default=1, ge=1, le=64, description="q")
        activation: Activation = "gelu"
        train_norms: bool = Field(default=True, description="gains and biases of norms; false behind a gate")

        @model_validator(mode="after")
        def _fits(self) -> Compacter.Config:
            if self.bottleneck % self.phm_dim:
                raise ValueError(
                    f"bottleneck must be a multiple of phm_dim, but got bottleneck={self.bottleneck}, "
                    f"phm_dim={self.phm_dim}"
                )
            others = [s for s in self.sites or () if s != "ffn"]
            if self.variant == "compacter_plus_plus" and others:
                raise ValueError(
                    f"variant 'compacter_plus_plus' sits on 'ffn' only, but got sites {others}; 'compacter' "
                    "takes them"
                )
            return self

    def __init__(self, config: Config) -> None:
        self.config = config
        if not config.train_norms:
            self.traits = replace(self.traits, ways=frozenset({"hook"}))

    @property
    def default_sites(self) -> tuple[str, ...]:
        """Where this variant sits when the recipe names no sites."""
        return ("ffn",) if self.config.variant == "compacter_plus_plus" else self.traits.default_sites

    def _norms(self, sites: Sequence[Site], spec: BackboneSpec) -> list[TensorSpec]:
        return norms_around(sites, spec) if self.config.train_norms else []

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        require_blocks("compacter", c.phm_dim, sites)
        n = c.phm_dim**3 + sum(t.size for t in self._norms(sites, spec))
        for s in sites:
            n += 2 * LowRankKronecker.size(s.in_features, c.bottleneck, c.rank) + s.in_features + c.bottleneck
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        adapters = {s.key: PHMBottleneck(s.in_features, c) for s in sites}
        return CompacterModule(adapters, c.phm_dim, self._norms(sites, spec))

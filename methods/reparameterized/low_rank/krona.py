"""KronA: a Kronecker product as the change of a weight, or as an adapter beside the FFN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, Linear, MethodConfig, ParameterCount, Traits, register
from autopeft.nn import PerSite
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["KronA"]

Shapes = tuple[tuple[int, int], tuple[int, int]]
PARALLEL_SITES = ("ffn", "attention", "cross_attention")


class KroneckerPair(nn.Module):
    """x ↦ (A ⊗ B)·x, (…, in) → (…, out), for A (a1 × a2) zero and B (b1 × b2) Kaiming-uniform (a = √5).

    `scale` and `residual` are learned factors, one and zero at init, where they are asked for.
    """

    def __init__(self, shapes: Shapes, *, scale: bool, residual: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(shapes[0]))
        self.B = nn.Parameter(torch.empty(shapes[1]))
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        self.scale = nn.Parameter(torch.ones(1)) if scale else None
        self.residual = nn.Parameter(torch.zeros(1)) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """A·X·Bᵀ with X (a2 × b2) the rows of x: the product is never formed."""
        rows = x.unflatten(-1, (self.A.shape[1], self.B.shape[1]))
        inner = nn.functional.linear(rows, self.B).transpose(-1, -2)
        return nn.functional.linear(inner, self.A).transpose(-1, -2).flatten(-2)


class KronAModule(PerSite[KroneckerPair]):
    """A pair for each site; δ = s·(A ⊗ B)·x, and s_res·x besides in the residual variant."""

    def __init__(self, children: dict[str, KroneckerPair], scale: float) -> None:
        super().__init__(children)
        self.scale = scale

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        pair = self[site]
        out: Tensor = pair(x)
        if pair.scale is not None:
            out = out * pair.scale
        elif not call.gated:
            out = out * self.scale
        return out if pair.residual is None else out + pair.residual * x

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        pair = self[site]
        scale = self.scale if pair.scale is None else pair.scale
        return weight + scale * torch.kron(pair.A, pair.B), bias

    def up_parameters(self) -> list[nn.Parameter]:
        return [pair.A for pair in self.children_by_site()]


@register("krona")
class KronA:
    """y = W₀x + b₀ + s·(A ⊗ B)·x with A (a1 × a2), B (b1 × b2), a1·b1 = out, a2·b2 = in: of rank A times
    rank B.

    Edalati et al. 2022, arXiv:2212.10650. `variant`: `weight` (KronA) changes linear maps and is mergeable;
    `parallel` (KronA_B) stands beside a sub-layer, y = F(x) + s·(A ⊗ B)·x with x what F consumes;
    `parallel_residual` (KronA_B_res) adds s_res·x to it, with a trained s_res. The two are not mergeable.
    A is zero and B Kaiming-uniform (a = √5), as in LoKr, and s_res is zero: the identity at init (no source
    was at hand for the paper's own init). s is a constant, whose place a gate takes, or `learned`, one at
    init.

    a1 and a2 divide out and in; left out, they are the divisors nearest to the square root, a1 from above and
    a2 from below, so that a square site of width d = 768 has 32 × 24 and 24 × 32, 2d parameters.
    a1·a2 + b1·b2 parameters for each site, and 1 each for a learned s and for s_res.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=(*LINEAR_SITES, *PARALLEL_SITES),
        default_sites=("q", "v"),
        mergeable=True,
        rowwise=True,
    )
    linear_in: ClassVar[Linear] = {"A": 0.0, "residual": 0.0}

    class Config(MethodConfig):
        variant: Literal["weight", "parallel", "parallel_residual"] = "weight"
        a1: int | None = Field(default=None, ge=1, le=65536, description="rows of A; default: near √out")
        a2: int | None = Field(default=None, ge=1, le=65536, description="columns of A; default: near √in")
        scale: float | Literal["learned"] = Field(default=1.0, description="s, above 0 and at most 100")

        @field_validator("scale")
        @classmethod
        def _in_range(cls, value: float | str) -> float | str:
            if not isinstance(value, str) and not 0 < value <= 100:
                raise ValueError(f"scale must be above 0 and at most 100, or 'learned', but got {value}")
            return value

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.variant == "weight":
            self.traits = replace(self.traits, sites=LINEAR_SITES)
        else:
            self.traits = replace(self.traits, sites=PARALLEL_SITES, default_sites=("ffn",), mergeable=False)

    def _shapes(self, site: Site) -> Shapes:
        """Shapes of A and B.

        Raises:
            MethodError: a1 or a2 does not divide the site's width.
        """
        c = self.config
        out, width = site.out_features, site.in_features
        a1 = out // _below_root(out) if c.a1 is None else c.a1
        a2 = _below_root(width) if c.a2 is None else c.a2
        for name, part, whole in (("a1", a1, out), ("a2", a2, width)):
            if whole % part:
                raise MethodError(
                    f"krona with {name}={part} does not fit {site}: {part} does not divide {whole}. Its "
                    f"divisors are {', '.join(map(str, _divisors(whole)))}; or leave {name} out."
                )
        return (a1, a2), (out // a1, width // a2)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        own = int(c.scale == "learned") + int(c.variant == "parallel_residual")
        n = sum(math.prod(a) + math.prod(b) + own for a, b in map(self._shapes, sites))
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        learned, residual = c.scale == "learned", c.variant == "parallel_residual"
        pairs = {s.key: KroneckerPair(self._shapes(s), scale=learned, residual=residual) for s in sites}
        return KronAModule(pairs, 1.0 if c.scale == "learned" else c.scale)


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _below_root(n: int) -> int:
    """The largest divisor that is at most √n."""
    return next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)

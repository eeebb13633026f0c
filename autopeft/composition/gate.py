"""`gate`: each child at each site behind a learned, input-dependent gate (UniPELT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    alters_weights,
    refuse_searched,
)
from autopeft.composition.positions import mean_over_positions
from autopeft.composition.registry import register
from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, WeightTarget
from autopeft.nn import PerSite
from autopeft.spec import Site

__all__ = ["Gate"]


class GateOptions(CompositionOptions):
    """See `autopeft.composition.gate`."""

    masked: bool = Field(default=True, description="leave padding out of the gate's mean")


@register("gate")
class Gate(nn.Module):
    """δ = Σ gᵢ·δᵢ with gᵢ = mean over real positions of σ(wᵢ·u + bᵢ), one scalar for each example, child and
    site.

    u is what the child reads: the site's input, or for an adapter behind it what that transforms. A gate
    takes the place of a child's own constant scale (LoRA's α/r), and multiplies a prefix's keys and values (a
    zero gate leaves zeroed keys, which still take attention). w is N(0, 0.02), b is zero. Mao et al. 2022,
    arXiv:2110.07577, §3.2. Their mean runs over padding too, so that results depend on the padding's length;
    here it is masked, and `masked: false` gives theirs. On causal stacks the mean runs over later positions
    too: right for a head that reads the last one, a leak in language-model training. width + 1 parameters for
    each child and site.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "each child at each site behind a learned, input-dependent gate (UniPELT)"
    traits: ClassVar[CompositionTraits] = CompositionTraits()
    Options = GateOptions

    def __init__(self, children: Sequence[ChildSpec], masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.gates = nn.ModuleDict(
            {c.name: PerSite({s.key: self._linear(c.fed(s)) for s in c.sites}) for c in children}
        )

    def pools(self, site: Site) -> bool:
        return True

    @staticmethod
    def _linear(width: int) -> nn.Linear:
        linear = nn.Linear(width, 1)
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        return linear

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        refuse_searched("gate", children)
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("gate", child)
            if "prompt" in child.ways:
                raise CompositionError(
                    f"{child.label} adds rows to the sequence before any layer could feed a gate; list it "
                    f"under `model:`, outside the gate."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        n = sum(c.fed(s) + 1 for c in children for s in c.sites)
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Gate:
        return cls(children, masked=bool(options.get("masked", True)))

    def value(self, site: Site, name: str, u: Tensor, call: Call) -> Tensor:
        """g for every example: (batch, 1, 1) from u (batch, positions, width).

        Raises:
            CompositionError: the sequence cannot be pooled (see `mean_over_positions`).
        """
        linear = cast("PerSite[nn.Linear]", self.gates[name])[site]
        g: Tensor = torch.sigmoid(linear(u.to(linear.weight.dtype))).to(u.dtype)
        return mean_over_positions(g, site, call, "A gate", masked=self.masked)

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        inner = replace(call, gated=True)
        total: Tensor | None = None
        for child in children:
            gate = self.value(site, child.name, child.reads(x, y, call), call)
            term = gate * child.delta(x, y, inner)
            total = term if total is None else total + term
        if total is None:
            raise CompositionError("A gate has no child here.")
        return total

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A gate holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        inner = replace(call, gated=True)
        keys, values = [], []
        for child in children:
            gate = self.value(site, child.name, x, call)
            k, v = child.key_value(x, inner)
            keys.append(gate * k)
            values.append(gate * v)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

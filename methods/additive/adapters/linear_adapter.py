"""Adapters around single linear maps, as LLM-Adapters has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, Linear, MethodConfig, Narrow, ParameterCount, Traits, register
from autopeft.nn import Activation, Bottleneck, Bottlenecks
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["LinearAdapter"]

Variant = Literal["series", "input", "parallel"]


class LinearAdapterModule(Bottlenecks[Bottleneck]):
    """A bottleneck for each linear map."""

    def __init__(
        self, children: dict[str, Bottleneck], variant: Variant, scale: float, dropout: float
    ) -> None:
        super().__init__(children)
        self.variant, self.scale, self.dropout = variant, scale, dropout

    def side(self, site: Site) -> Literal["input", "output"]:
        return "input" if self.variant == "input" else "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the adapter is fed: y after the map (series), x before it."""
        return y if self.variant == "series" else x

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        fed = self.reads(site, x, y, call)
        if self.dropout:
            fed = nn.functional.dropout(fed, self.dropout, self.training)
        out: Tensor = self[site](fed)
        return out if call.gated or self.scale == 1 else out * self.scale


@register("linear_adapter")
class LinearAdapter:
    """f(u) = φ(dropout(u)·W_dnᵀ)·W_upᵀ around a linear map: y = z + s·f(z) after it, z = W₀x + b₀ (`series`),
    y = W₀(x + s·f(x)) + b₀ before it (`input`), or y = z + s·f(x) beside it (`parallel`).

    Hu et al. 2023, LLM-Adapters, arXiv:2304.01933. Their code (AGI-Edgerunners/LLM-Adapters,
    peft/src/peft/tuners/bottleneck.py) calls the first two `output_adapter` and `mh_adapter`, and chooses
    between them by the name of the map. Unlike He et al.'s parallel adapter, which spans a whole sub-layer,
    `parallel` goes from the map's inputs to its outputs. Defaults are theirs: m = 256, tanh, s = 1, no
    biases, no dropout; weights from N(0, 0.02), so close to the identity at init, yet not exactly. They put
    `series` and `parallel` into the FFN, `series` behind its last map, which is the default site; the recipes
    `llm-adapters-series` and `llm-adapters-parallel` are their runs on LLaMA-7B. Behind a gate the gate takes
    the place of s. Not mergeable.

    (in + out)·m parameters for each map beside it, 2·out·m behind it, 2·in·m before it; and with `bias` the
    width of what it gives and m.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=LINEAR_SITES,
        default_sites=("down",),
        stochastic=True,
        rowwise=True,
        identity=False,
    )
    size_field: ClassVar[str] = "bottleneck"
    part_names: ClassVar[tuple[str, ...]] = ("down", "up")
    narrow: ClassVar[Narrow] = {"bottleneck": Bottleneck.by_width}
    linear_in: ClassVar[Linear] = Bottleneck.linear_in

    class Config(MethodConfig):
        variant: Variant = "series"
        bottleneck: int = Field(default=256, ge=1, le=16384, description="m")
        scale: float = Field(default=1.0, gt=0, le=100, description="s")
        activation: Activation = "tanh"
        bias: bool = False
        dropout: float = Field(default=0.0, ge=0, lt=1, description="on what it is fed")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _widths(self, site: Site) -> tuple[int, int]:
        """The widths of what it is fed and of what it gives."""
        variant = self.config.variant
        fed = site.out_features if variant == "series" else site.in_features
        return fed, site.in_features if variant == "input" else site.out_features

    def fed_width(self, site: Site) -> int:
        """The width of what it is fed, which a gate in front of it reads too."""
        return self._widths(site)[0]

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of a part at a site."""
        fed, out = self._widths(site)
        return Bottleneck.part_size(fed, self.config.bottleneck, part, out=out, bias=self.config.bias)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        widths = [self._widths(s) for s in sites]
        n = sum(Bottleneck.size(fed, c.bottleneck, out=out, bias=c.bias) for fed, out in widths)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        adapters = {
            s.key: Bottleneck(fed, c.bottleneck, out=out, activation=c.activation, init="bert", bias=c.bias)
            for s in sites
            for fed, out in [self._widths(s)]
        }
        return LinearAdapterModule(adapters, c.variant, c.scale, c.dropout)

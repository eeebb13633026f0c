"""The scaled parallel adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from autopeft.errors import CompositionError
from autopeft.method import Call, Linear, MethodConfig, Narrow, ParameterCount, Traits, register
from autopeft.nn import Activation, Bottleneck, Bottlenecks
from autopeft.spec import BackboneSpec, Site

__all__ = ["ParallelAdapter"]


class ScaledBottleneck(Bottleneck):
    """A bottleneck with a learned factor, one at init, where `learned`."""

    def __init__(self, width: int, bottleneck: int, config: ParallelAdapter.Config) -> None:
        super().__init__(
            width,
            bottleneck,
            activation=config.activation,
            init=config.init,
            bias=config.bias,
            dropout=config.dropout,
        )
        self.scale = nn.Parameter(torch.ones(1)) if config.scale == "learned" else None


class ParallelAdapterModule(Bottlenecks[ScaledBottleneck]):
    """A bottleneck for each site, fed by the residual stream or by what the frozen sub-layer reads."""

    def __init__(self, children: dict[str, ScaledBottleneck], config: ParallelAdapter.Config) -> None:
        super().__init__(children)
        self.config = config
        self.scale = 1.0 if config.scale == "learned" else config.scale

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """What the adapter is fed: x, or on pre-norm layers the residual stream in front of the norm."""
        # Without a norm in front x is the residual stream itself.
        if not (site.pre_norm and self.config.takes_residual(site)):
            return x
        if call.residual is None:
            raise CompositionError(_no_residual(site, "this backbone"))
        return call.residual.to(x.dtype)

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        adapter = self[site]
        out: Tensor = adapter(self.reads(site, x, y, call))
        if adapter.scale is not None:
            return out * adapter.scale
        return out if call.gated else out * self.scale

    def parts(self) -> dict[str, list[nn.Parameter]]:
        scales = [adapter.scale for adapter in self.children_by_site() if adapter.scale is not None]
        return {**super().parts(), "scale": scales}

    def up_parameters(self) -> list[nn.Parameter]:
        return self.parts()["up"]


def _no_residual(site: Site, where: str) -> str:
    return (
        f"parallel_adapter (input residual) reads the residual stream in front of {site}, which {where} does "
        "not offer; `input: normed` reads what the sub-layer itself reads."
    )


@register("parallel_adapter")
class ParallelAdapter:
    """y = F(x) + s·(φ(h·W_dnᵀ + b_dn)·W_upᵀ + b_up) beside a frozen sub-layer F; h is x or the residual.

    He et al. 2022, arXiv:2110.04366 (scaled PA). W_dn (m × d) is Kaiming-uniform (a = √5), W_up (d × m) and
    both biases are zero: the identity at init. s is a constant (4 in the paper's generation tasks, 2 in its
    classification tasks) or `learned`, one at init, and decays with what it scales. Behind a gate the gate
    takes the place of a constant s. `init: glorot` draws both weights Glorot-uniform, not the identity
    (CIAT, Zhu et al. 2021, arXiv:2104.08154). Not mergeable. 2dm + m + d parameters for each site (2dm
    without biases), and 1 for a learned s.

    `input` says what h is where a norm stands in front of F (GPT-2, Llama, T5, ViT): the `residual` stream
    before that norm, or the `normed` x that F reads. Left out, it is that of the authors' code for mBART
    (modeling_mbart.py): the residual stream beside the FFN, x beside an attention. It is x as well on
    backbones without a site map, where nobody knows whether there is a norm. On post-norm backbones (BERT)
    both are the same.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=("ffn", "attention", "cross_attention"),
        default_sites=("ffn",),
        stochastic=True,
        rowwise=True,
    )
    size_field: ClassVar[str] = "bottleneck"
    part_names: tuple[str, ...] = ("down", "up", "scale")
    narrow: ClassVar[Narrow] = {"bottleneck": Bottleneck.by_width}
    linear_in: ClassVar[Linear] = Bottleneck.linear_in

    class Config(MethodConfig):
        bottleneck: int = Field(default=64, ge=1, le=16384, description="m")
        scale: float | Literal["learned"] = Field(default=4.0, description="s, above 0 and at most 100")
        activation: Activation = "relu"
        bias: bool = True
        dropout: float = Field(default=0.0, ge=0, lt=1, description="after the activation")
        init: Literal["lora", "glorot"] = Field(
            default="lora", description="lora: up zero, the identity; glorot: both Glorot-uniform (CIAT)"
        )
        input: Literal["residual", "normed"] | None = Field(
            default=None, description="h on pre-norm layers; default: residual at ffn, normed at attention"
        )

        def takes_residual(self, site: Site) -> bool:
            """Whether h is the residual stream at this site."""
            return site.name == "ffn" if self.input is None else self.input == "residual"

        @field_validator("scale")
        @classmethod
        def _in_range(cls, value: float | str) -> float | str:
            if not isinstance(value, str) and not 0 < value <= 100:
                raise ValueError(f"scale must be above 0 and at most 100, or 'learned', but got {value}")
            return value

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.scale != "learned":
            self.part_names = ("down", "up")
        if config.init == "glorot":
            self.traits = replace(self.traits, identity=False)

    def part_size(self, site: Site, part: str) -> int | None:
        """Parameters of a part at a site; `None` for a part that is no projection."""
        return Bottleneck.part_size(site.in_features, self.config.bottleneck, part, bias=self.config.bias)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        unknown = next((s for s in sites if s.pre_norm is None), None)
        if c.input == "residual" and unknown is not None:
            raise CompositionError(_no_residual(unknown, f"{spec.family!r}, a family without a site map,"))
        own = int(c.scale == "learned")
        n = sum(Bottleneck.size(s.in_features, c.bottleneck, bias=c.bias) + own for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        adapters = {s.key: ScaledBottleneck(s.in_features, c.bottleneck, c) for s in sites}
        return ParallelAdapterModule(adapters, c)

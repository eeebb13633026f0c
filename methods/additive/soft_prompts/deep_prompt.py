"""Deep prompts: each layer has trained rows of its own, which the next layer does not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from autopeft.method import Call, MethodConfig, Narrow, ParameterCount, Slot, Traits, register
from autopeft.spec import BackboneSpec, Site

__all__ = ["DeepPrompt"]

_TABLE = 100


class DeepRows(nn.Module):
    """P (length, d) of each layer, the parameters `rows`, by site."""

    def __init__(self, sites: Sequence[Site], length: int, dropout: float) -> None:
        super().__init__()
        self.length, self.dropout = length, dropout
        self.rows = nn.ParameterDict({s.key: nn.Parameter(torch.empty(length, s.in_features)) for s in sites})
        for rows in self.rows.values():
            bound = math.sqrt(6 / ((_TABLE + 1) * rows.shape[1]))
            nn.init.uniform_(rows, -bound, bound)

    def slots(self, site: Site) -> Sequence[Slot]:
        return (Slot(self.length, leaves=True),)

    def prompt(self, site: Site, x: Tensor, call: Call) -> Tensor:
        return F.dropout(self.rows[site.key].expand(len(x), -1, -1), self.dropout, self.training)


@register("deep_prompt")
class DeepPrompt:
    """[_; H⁽ⁱ⁺¹⁾] = layer i of [P⁽ⁱ⁾; H⁽ⁱ⁾], with P⁽ⁱ⁾ (length × d) trained; its rows stand in that layer.

    VPT-deep of Jia et al. 2022, arXiv:2203.12119 (eqs. 6 and 7), for text too: rows in front of the tokens,
    or behind the patches of an image, for which order is nothing. Each layer that the recipe names has its
    own rows, of its own length where it has an entry of its own; those of the stack that reads the input
    alone. Rows have no positions, but in front of T5's first layer, where they are at distances as tokens
    are. `dropout` acts on the rows. Rows start uniform in ±√(6/(101·d)), as NOAH's do (Xavier on its table of
    100 rows); VPT's bound √(6/(3·p² + d)) counts the pixels of a patch, which text does not have. VPT has 5
    rows by default and none to 200 tuned for each task, and trains by SGD at rates from 0.05 to 50. A decoder
    has no cache while it writes, since its layers would have keys of different lengths. Not the identity at
    init; not mergeable.

    l·d parameters for each layer.
    """

    traits = Traits(
        ways=frozenset({"prompt"}),
        sites=("layer",),
        default_sites=("layer",),
        stochastic=True,
        identity=False,
        gateable=False,
    )
    size_field: ClassVar[str] = "length"
    narrow: ClassVar[Narrow] = {"length": {"rows": (0,)}}

    class Config(MethodConfig):
        length: int = Field(default=5, ge=1, le=4096, description="l")
        dropout: float = Field(default=0.0, ge=0, lt=1, description="on the rows")

    def __init__(self, config: Config) -> None:
        self.config = config

    def among(self, sites: Sequence[Site], spec: BackboneSpec) -> tuple[Site, ...]:
        """The layers of the stack that reads the input."""
        return tuple(s for s in sites if s.stack == spec.stacks[0].name)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.length * site.in_features for site in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return DeepRows(sites, self.config.length, self.config.dropout)

"""A method: a trained vector that is added to what a site yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, ParameterCount, Traits, register
from autopeft.spec import BackboneSpec, Site


class Vectors(nn.Module):
    """A vector for each site, (out_features), zero at first."""

    def __init__(self, sites: Sequence[Site], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.at = nn.ParameterDict({s.key: nn.Parameter(torch.zeros(s.out_features)) for s in sites})

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return self.scale * self.at[site.key].expand_as(y)


class ToyConfig(MethodConfig):
    """Options of `toy`."""

    scale: float = Field(1.0, gt=0, le=100, description="factor of the vector")


@register("toy")
class Toy:
    """y + scale · v."""

    traits = Traits(ways=frozenset({"hook"}), sites=("q", "k", "v", "o", "up", "down"), default_sites=("up",))
    Config = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(s.out_features for s in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Vectors(sites, self.config.scale)

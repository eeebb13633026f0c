"""Two methods on the scores of attention: a slope over distances, and places that queries look for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, ParameterCount, Traits, register
from autopeft.method.registry import REGISTRY
from autopeft.nn import PerSite
from autopeft.spec import BackboneSpec, Site
from support.registries import keep

__all__ = ["CASES", "registered"]

CASES = {"score-slope": ("layers", "score_slope"), "score-places": ("layers", {"score_places": {"width": 3}})}
"""As `support.cases.CASES`."""

TRAITS = Traits(ways=frozenset({"scores"}), sites=("attention",), default_sites=("attention",))


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(()))


class Slopes(PerSite[Slope]):
    def query_key(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        assert call.places is not None
        i, j = (places.to(x.dtype) for places in (call.places.queries, call.places.keys))
        here, there = ((places >= 0).to(x.dtype) for places in (call.places.queries, call.places.keys))
        of_queries = torch.stack([here, -i * here], dim=-1) * self[site].slope
        return of_queries, torch.stack([j * there, there], dim=-1)


class ScoreSlope:
    """s·(j − i) for the query of token i and the key of token j, with s zero at init."""

    traits = TRAITS
    Config = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        return ParameterCount(len(sites), len(sites))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return Slopes({site.key: Slope() for site in sites})


class Sought(nn.Module):
    def __init__(self, hidden: int, places: int, width: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(hidden, width) / hidden**0.5)
        self.B = nn.Parameter(torch.zeros(places, width))


class Places(PerSite[Sought]):
    def query_key(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        assert call.places is not None
        own, places = self[site], call.places.keys
        return x.to(own.A.dtype) @ own.A, own.B[places.clamp(0, len(own.B) - 1)] * (places >= 0)[..., None]


class ScorePlaces:
    """(x_i·A)·B_j, which depends on what the query's token is, with B zero at init."""

    traits = TRAITS

    class Config(MethodConfig):
        width: int = 2
        places: int = 16

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.width * (site.in_features + self.config.places) for site in sites)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        return Places({s.key: Sought(s.in_features, c.places, c.width) for s in sites})


@contextmanager
def registered() -> Iterator[None]:
    """Within, both are methods like any other."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, REGISTRY)
        register("score_slope")(ScoreSlope)
        register("score_places")(ScorePlaces)
        yield

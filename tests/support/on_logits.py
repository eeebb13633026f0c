"""Two methods on logits: a trained bias, and a low-rank map from the hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from autopeft.method import Call, MethodConfig, ParameterCount, Traits, register
from autopeft.method.registry import REGISTRY
from autopeft.spec import BackboneSpec, Site
from support.registries import keep

__all__ = ["CASES", "registered"]

CASES = {"logit-bias": ("model", "logit_bias"), "logit-map": ("model", {"logit_map": {"rank": 3}})}
"""As `support.cases.CASES`."""


class Bias(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def logits(self, hidden: Tensor, logits: Tensor, call: Call) -> Tensor:
        return self.bias.expand_as(logits)


class LogitBias:
    """z + b, with b zero at init."""

    traits = Traits(ways=frozenset({"logits"}), level="model", rowwise=True)
    Config = MethodConfig

    def __init__(self, config: MethodConfig) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        assert spec.logits is not None
        return ParameterCount(spec.logits.width, spec.logits.width)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        assert spec.logits is not None
        return Bias(spec.logits.width)


class Map(nn.Module):
    def __init__(self, hidden: int, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, hidden) / hidden**0.5)
        self.B = nn.Parameter(torch.zeros(width, rank))

    def logits(self, hidden: Tensor, logits: Tensor, call: Call) -> Tensor:
        return hidden @ self.A.T @ self.B.T


class LogitMap:
    """z + B·A·h of the hidden states h, with B zero at init."""

    traits = Traits(ways=frozenset({"logits"}), level="model", rowwise=True)

    class Config(MethodConfig):
        rank: int = 4

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        assert spec.logits is not None
        n = self.config.rank * (spec.logits.hidden + spec.logits.width)
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        assert spec.logits is not None
        return Map(spec.logits.hidden, spec.logits.width, self.config.rank)


@contextmanager
def registered() -> Iterator[None]:
    """Within, both are methods like any other."""
    with pytest.MonkeyPatch.context() as patch:
        keep(patch, REGISTRY)
        register("logit_bias")(LogitBias)
        register("logit_map")(LogitMap)
        yield

"""`sum`: every child reads the same x and y₀; their deltas add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from autopeft.composition.contract import Child, ChildSpec, CompositionTraits, MergingChild, NoOptions
from autopeft.composition.registry import register
from autopeft.method import Call, ParameterCount, WeightTarget
from autopeft.spec import Site

__all__ = ["Sum", "added", "one_after_the_other"]


def one_after_the_other(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Keys and values (1 or batch, length, width) of several prefixes as those of one."""
    if len(pairs) == 1:
        return pairs[0]
    batch = max(k.shape[0] for k, _ in pairs)
    keys = torch.cat([k.expand(batch, -1, -1) for k, _ in pairs], dim=1)
    values = torch.cat([v.expand(batch, -1, -1) for _, v in pairs], dim=1)
    return keys, values


def added(
    children: Sequence[MergingChild], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) with the children's deltas added: W + Σ (Wᵢ − W); a missing bias counts as 0."""
    new_weight, new_bias = weight, bias
    for child in children:
        changed = child.merged(weight, bias)
        if changed is None:
            continue
        new_weight = new_weight + (changed[0] - weight)
        if changed[1] is not None:
            shift = changed[1] if bias is None else changed[1] - bias
            new_bias = shift if new_bias is None else new_bias + shift
    return new_weight, new_bias


@register("sum")
class Sum(nn.Module):
    """y = y₀ + Σ δᵢ(x, y₀). Weights: W₀ + Σ ΔWᵢ, each read off W₀. Prefixes: one after the other, in file
    order."""

    kind: ClassVar[str]
    summary: ClassVar[str] = "every child reads the same x and y₀; their deltas add"
    traits: ClassVar[CompositionTraits] = CompositionTraits(additive=True, mergeable=True, rowwise=True)
    Options = NoOptions

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        """Anything adds up."""

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        return ParameterCount(0, 0)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Sum:
        return cls()

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        total = children[0].delta(x, y, call)
        for child in children[1:]:
            total = total + child.delta(x, y, call)
        return total

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        for child in children:
            current = child.weight(target, original, current)
        return current

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        return one_after_the_other([child.key_value(x, call) for child in children])

    def merged(
        self, site: Site, children: Sequence[MergingChild], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return added(children, weight, bias)

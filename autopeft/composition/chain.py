"""`chain`: children in list order, each reads the y that the one before left."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor, nn

from autopeft.composition.contract import Child, ChildSpec, CompositionTraits, MergingChild, NoOptions
from autopeft.composition.registry import register
from autopeft.errors import CompositionError
from autopeft.method import Call, ParameterCount, WeightTarget
from autopeft.spec import Site

__all__ = ["Chain"]


@register("chain")
class Chain(nn.Module):
    """yᵢ = yᵢ₋₁ + δᵢ(x, yᵢ₋₁); δ = yₙ − y₀. Weights, and tensors outside the layers, alike: each child reads
    the W that the one before left."""

    kind: ClassVar[str]
    summary: ClassVar[str] = "children in list order, each reads the y that the one before left"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        ordered=True, mergeable=True, rowwise=True, several=True
    )
    Options = NoOptions

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        if len(children) < 2:
            raise CompositionError(
                f"A chain needs at least two children, but has {len(children)}; list it alone instead."
            )
        for child in children:
            if child.ways & {"kv", "prompt"}:
                what = "prepends keys and values" if "kv" in child.ways else "adds rows to the sequence"
                raise CompositionError(
                    f"{child.label} {what} and leaves no output for the next in a chain to read; put it "
                    "beside the chain (listed modules act together) instead of into it."
                )
        for first, second in pairwise(children):
            if "hook" in first.ways and second.ways == {"weight"}:
                raise CompositionError(
                    f"In this chain {first.label} acts on outputs before {second.label} alters weights, but "
                    f"weights act first; put {second.label} before {first.label}."
                )
            if not _meet(first, second):
                raise CompositionError(
                    f"{first.label} and {second.label} share no site, so neither can read what the other "
                    f"left: {_names(first)} against {_names(second)}; list them side by side, or give them a "
                    "common site."
                )
        for i, child in enumerate(children):
            earlier = next((c for c in children[:i] if "weight" in c.ways and _meet(c, child)), None)
            if child.pretrained and earlier is not None:
                raise CompositionError(
                    f"{child.label} reads pretrained tensors alone, and in this chain {earlier.label} alters "
                    f"them before; put {child.label} first, or beside the chain."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        return ParameterCount(0, 0)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Chain:
        return cls()

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        current = y
        for child in children:
            current = current + child.delta(x, current, call)
        return current - y

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        inner = original
        for child in children:
            inner = child.weight(target, inner, inner)
        return current + (inner - original)

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        raise CompositionError("A chain holds no prefixes.")

    def merged(
        self, site: Site, children: Sequence[MergingChild], weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        pair = weight, bias
        for child in children:
            pair = child.merged(*pair) or pair
        return pair


def _meet(first: ChildSpec, second: ChildSpec) -> bool:
    return bool({s.key for s in first.sites} & {s.key for s in second.sites})


def _names(child: ChildSpec) -> str:
    return ", ".join(sorted({s.name for s in child.sites})) or "no site"

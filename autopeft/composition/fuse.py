"""`fuse`: children mixed by an attention over what they add (AdapterFusion)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    alters_weights,
    by_site,
    check_learn_together,
)
from autopeft.composition.registry import register
from autopeft.errors import CompositionError
from autopeft.method import Call, LossStep, ParameterCount, WeightTarget
from autopeft.nn import Fusion, PerSite
from autopeft.spec import Site

__all__ = ["Fuse"]


class FuseOptions(CompositionOptions):
    """See `autopeft.composition.fuse`."""

    value: bool = Field(default=True, description="transform what is mixed by W_v")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of scores, before the softmax")
    regularization: float = Field(default=0.01, ge=0, le=10, description="factor of ‖I − W_v‖²")


@register("fuse")
class Fuse(PerSite[Fusion]):
    """δ = W_v·Σₜ αₜ·zₜ, α = softmaxₜ(dropout(q·kₜ)), q = W_q·u + b_q, kₜ = W_k·zₜ + b_k, at each position.

    Pfeiffer et al. 2021, arXiv:2005.00247 (AdapterFusion), with zₜ what child t adds and u what the first
    child reads: for a `serial_adapter` of the variant pfeiffer norm(y + residual), else the input of the
    site. One head, no 1/√d; as in the library `adapters` dropout falls on the scores and not on α, and its
    default is 0.1, the dropout of BERT's attention, which the library takes. W_q and W_k are N(0, 0.02) with
    zero biases; W_v is 1 on the diagonal and 1e-6 elsewhere, as in the code (the paper has random numbers of
    that size), and has no bias. `value: false` leaves W_v out (the library's `static`). `regularization`·Σ‖I
    − W_v‖² over the sites is added to the loss, before gradients are clipped; the library adds its gradient
    one step later. There is no temperature, which the library has switched off.

    Its children are normally trained before, each on a task of its own, and stay as they are (`from:` an
    input, `frozen: true`); their dropout acts. A child that is alone at a site acts there as without the
    composition. Not mergeable: all children run. With widths d: 3d² + 2d parameters for each site, 2d² + 2d
    without W_v, beside the children's.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "children mixed by an attention over what they add (AdapterFusion)"
    traits: ClassVar[CompositionTraits] = CompositionTraits(ordered=True, rowwise=True, several=True)
    Options = FuseOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__(
            {
                site.key: Fusion(read, site.out_features, value=options["value"], dropout=options["dropout"])
                for site, read in _fused(children)
            }
        )
        self.regularization = float(options["regularization"])

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        check_learn_together("fuse", children)
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("fuse", child)
            if child.ways & {"kv", "prompt"}:
                raise CompositionError(
                    f"{child.label} adds rows that an attention of the model mixes already, and fuse mixes "
                    "what is added at a position; list it beside the fuse, or fuse adapters or LoRAs."
                )
        if not _fused(children):
            raise CompositionError(
                f"{' and '.join(child.label for child in children)} have no site in common where a fuse "
                "could mix them; give them the same sites and layers."
            )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        n = sum(Fusion.size(read, s.out_features, value=options["value"]) for s, read in _fused(children))
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Fuse:
        return cls(children, options)

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        deltas = [child.delta(x, y, call) for child in children]
        if len(deltas) == 1:
            return deltas[0]
        if deltas[0].shape[-1] != site.out_features:
            raise CompositionError(
                f"{children[0].name} alters what goes into {site.path}, and fuse mixes what is added behind "
                "a site; give it other sites, or list it beside the fuse."
            )
        mixed: Tensor = self[site](children[0].reads(x, y, call), torch.stack(deltas, dim=-2))
        return mixed

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A fuse holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        raise CompositionError("A fuse holds no methods on keys and values.")

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """`regularization` times the squared distances of W_v from the identity, summed over the sites."""
        distances = [fusion.distance() for fusion in self.children_by_site() if fusion.value is not None]
        return self.regularization * torch.stack(distances).sum() if distances else None


def _fused(children: Sequence[ChildSpec]) -> list[tuple[Site, int]]:
    """Sites of several children, each with the width of what the first one there reads."""
    sites, names = by_site(children)
    fed = {child.name: child.fed for child in children}
    return [(sites[key], fed[there[0]](sites[key])) for key, there in names.items() if len(there) > 1]

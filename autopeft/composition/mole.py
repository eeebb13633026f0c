"""`mole`: children mixed by weights of each layer and sequence (MoLE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    alters_weights,
    check_learn_together,
    mixed,
    require_gradient,
)
from autopeft.composition.layers import gated_layers, layer_of
from autopeft.composition.positions import mean_over_positions
from autopeft.composition.registry import register
from autopeft.devices import full_precision
from autopeft.errors import CompositionError
from autopeft.method import Call, LossStep, ParameterCount, WeightTarget
from autopeft.spec import Site

__all__ = ["MoLE"]

_LENGTH = 0.01


class MoLEOptions(CompositionOptions):
    """See `autopeft.composition.mole`."""

    balance: float = Field(default=0.5, ge=0, le=10, description="factor of the balance loss")


@register("mole")
class MoLE(nn.Module):
    """δ = Σₜ gₜ·δₜ with g = softmax(W·ū/‖ū‖), one g for each layer and sequence, which all its sites share.

    Wu et al. 2024, arXiv:2404.13628 (MoLE): mixes LoRAs that were trained before, each on a task of its own,
    and trains the gates alone (children `from:` an input, `frozen: true`). Children keep their own scales. ū
    is the mean over the real positions of what the first site of the layer that has a child reads. The
    paper's gate reads what each child makes of the layer by itself, which takes a pass for each of them; the
    authors' code reads what goes into the layer, as here, but flattened over all positions, which fixes the
    length of the text (77 in CLIP). The mean in its place is this package's. There is no temperature: the
    code has one that neither trains nor acts. Rows of W have length 0.01 at the start, so that weights are
    within 0.005 of uniform; W has no bias.

    `balance` is the factor of −Σₜ ln qₜ, qₜ the mean of gₜ over the layers of a stack, averaged over rows and
    added up over stacks: the paper's loss and its factor. In the code it has no gradient. On causal stacks
    the mean over positions lets earlier ones see later ones, as with `route` by sequence. Not mergeable: all
    children run. T·width parameters for each layer with T > 1 children, beside the children's.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "children mixed by weights of each layer and sequence (MoLE)"
    traits: ClassVar[CompositionTraits] = CompositionTraits(several=True)
    Options = MoLEOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__()
        self.balance = float(options["balance"])
        self.first, self.experts = gated_layers(children)
        self.gates = nn.ParameterDict(
            {at: _rows(len(self.experts[at]), site.in_features) for at, site in self.first.items()}
        )
        self._feature = f"mole {' '.join(child.name for child in children)}"
        self._weights: dict[str, Tensor] = {}  # of the last forward, by layer

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        check_learn_together("mole", children)
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("mole", child)
            if child.ways & {"kv", "prompt"}:
                raise CompositionError(
                    f"{child.label} adds rows to a sequence, and mole mixes what is added at a position; "
                    "list it beside the mole, take a route by sequence for prefixes, or adapters or LoRAs."
                )
        if not gated_layers(children)[0]:
            raise CompositionError(
                f"{' and '.join(child.label for child in children)} have no layer in common where a mole "
                "could mix them; give them the same layers."
            )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        first, experts = gated_layers(children)
        n = sum(len(experts[at]) * site.in_features for at, site in first.items())
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> MoLE:
        return cls(children, options)

    def pools(self, site: Site) -> bool:
        return layer_of(site) in self.first

    def weights(self, site: Site, x: Tensor, call: Call) -> Tensor:
        """g, (batch, 1, experts), from x (batch, positions, width) of the first site; others of the layer
        read what it has found.

        Raises:
            CompositionError: the sequence cannot be pooled (see `mean_over_positions`).
        """
        at = layer_of(site)
        known, features = f"{self._feature} {at}", call.context.features
        # The first site computes it anew in each forward, so that a layer that is recomputed does so too.
        if site.key != self.first[at].key and known in features:
            return features[known]
        pooled = mean_over_positions(x, site, call, "The gate of a mole")
        with full_precision(x.device):
            unit = nn.functional.normalize(pooled.float(), dim=-1)
            g = torch.softmax(nn.functional.linear(unit, self.gates[at].float()), dim=-1)
        if self.training and self.balance and not call.context.further:
            require_gradient("The balance loss of a mole")
            self._weights[at] = g
        features[known] = g.to(x.dtype)
        return features[known]

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        at = layer_of(site)
        if at not in self.first:  # one child has the layer for itself
            (child,) = children
            return child.delta(x, y, call)
        # Children on the input side have altered x by the time that those on the output side act.
        g = self.weights(site, x if call.entered is None else call.entered, call)
        return mixed(g, self.experts[at], children, x, y, call)

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A mole holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        raise CompositionError("A mole holds no methods on keys and values.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": {}}  # of which no copy could be made, as they are in a graph

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """`balance` times the balance losses of the last forward, added up over stacks."""
        stacks: dict[str, list[Tensor]] = {}
        for at, g in self._weights.items():
            stacks.setdefault(at.partition("-")[0], []).append(g)
        self._weights = {}
        losses = [-torch.stack(found).mean(0).log().sum(-1).mean() for found in stacks.values()]
        return self.balance * torch.stack(losses).sum() if losses else None


def _rows(experts: int, width: int) -> nn.Parameter:
    drawn = torch.randn(experts, width)
    return nn.Parameter(_LENGTH * drawn / drawn.norm(dim=1, keepdim=True))

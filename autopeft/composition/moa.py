"""`moa`: a child for each task, chosen for each sequence by a router that learns from the tasks (MoA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

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
    require_gradient,
)
from autopeft.composition.layers import gated_layers, layer_of
from autopeft.composition.positions import mean_over_positions
from autopeft.composition.registry import register
from autopeft.composition.switch import check_one_for_each, child_of_each_row
from autopeft.devices import full_precision
from autopeft.errors import CompositionError
from autopeft.method import Call, LossStep, ParameterCount, WeightTarget, required_tasks, task_numbers
from autopeft.spec import Site

__all__ = ["MoA"]


class MoAOptions(CompositionOptions):
    """See `autopeft.composition.moa`."""

    tasks: list[str] | None = Field(
        default=None, description="names, in the order of the children; default: those trained on"
    )
    factor: float = Field(default=1.0, ge=0, le=100, description="η, factor of the routers' loss")
    router: Literal["each_layer", "first_layer"] = Field(
        default="each_layer", description="each layer chooses anew, or the first one of a stack for all"
    )


@register("moa")
class MoA(nn.Module):
    """δ of one child for each sequence: of its task while training, else the one with the largest Wₗ·h̄ₗ.

    After Feng et al. 2024, arXiv:2403.03432 (mixture-of-LoRAs). No code of the authors was found and the
    paper's text was not read: that LoRAs are trained for each domain apart, then chosen by routers that are
    trained with the domains' labels, stands in its abstract; the rest is a reconstruction. h̄ₗ is the mean
    over the real positions of what the first site of layer l reads, Wₗ (tasks × width) N(0, 0.02²), without
    bias. The loss gets η times the mean over layers of the cross-entropy of softmax(Wₗ·h̄ₗ) and the row's
    task. Only children that some row chose are computed.

    Children may start `from:` inputs, frozen or not (the paper's first stage), or train together with the
    routers. Layers may choose differently for one text: `router: first_layer` has one choice for a stack.
    Not mergeable. T·width parameters for each layer with a router.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "a child for each task, chosen by routers that learn from the tasks (MoA)"
    traits: ClassVar[CompositionTraits] = CompositionTraits(
        ordered=True, copies=True, several=True, for_each_task=True
    )
    Options = MoAOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__()
        self.tasks, self.order = required_tasks("moa", options["tasks"]), [c.name for c in children]
        self.factor = float(options["factor"])
        self.chooser, self.first = _routed(children, options)
        self.routers = nn.ParameterDict(
            {
                at: nn.Parameter(0.02 * torch.randn(len(self.tasks), site.in_features))
                for at, site in self.first.items()
            }
        )
        self._feature = f"moa {' '.join(self.order)}"
        self._losses: dict[str, Tensor] = {}  # of the last forward, by layer

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        check_one_for_each("moa", children, options)
        check_learn_together("moa", children)
        keys = {frozenset(site.key for site in child.sites) for child in children}
        if len(keys) > 1:
            raise CompositionError("The children of a moa stand in for each other; give them the same sites.")
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("moa", child)
            if child.ways & {"kv", "prompt"}:
                raise CompositionError(
                    f"{child.label} adds rows to a sequence, and moa chooses what is added at a position; "
                    "take adapters or LoRAs."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        _, first = _routed(children, options)
        n = sum(len(children) * site.in_features for site in first.values())
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> MoA:
        return cls(children, options)

    def pools(self, site: Site) -> bool:
        return True

    def choice(self, site: Site, x: Tensor, call: Call) -> tuple[Tensor, list[int]]:
        """Which child each row of x (batch, positions, width) takes, (batch,), and which are taken.

        Raises:
            CompositionError: while training the task of a row is not known, or the sequence cannot be pooled
                (see `mean_over_positions`).
        """
        at = self.chooser[layer_of(site)]
        known, features = f"{self._feature} {at}", call.context.features
        if site.key == self.first[at].key or (not self.training and known not in features):
            # The first site computes it anew in each forward, so that a layer that is recomputed does so too.
            self._route(at, site, x, call)
        if self.training:
            return task_numbers("moa", self.tasks, len(x), call)
        return features[known], features[f"{known} taken"].tolist()

    def _route(self, at: str, site: Site, x: Tensor, call: Call) -> None:
        pooled = mean_over_positions(x, site, call, "The router of a moa")[:, 0]
        with full_precision(x.device):
            logits = nn.functional.linear(pooled.float(), self.routers[at].float())
        if not self.training:
            known = f"{self._feature} {at}"
            chosen = call.context.features[known] = logits.argmax(dim=-1)
            call.context.features[f"{known} taken"] = chosen.unique().cpu()
        elif self.factor and not call.context.further:
            require_gradient("The routers' loss of a moa")
            numbers, _ = task_numbers("moa", self.tasks, len(x), call)
            loss = nn.functional.cross_entropy(logits, numbers)
            # A layer that is recomputed for its gradient comes by once more, in the middle of backward.
            if torch._C._current_graph_task_id() == -1:
                self._losses[at] = loss

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        # Children on the input side have altered x by the time that those on the output side act.
        numbers, there = self.choice(site, x if call.entered is None else call.entered, call)
        return child_of_each_row(self.order, children, numbers, there, x, y, call)

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A moa holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        raise CompositionError("A moa holds no methods on keys and values.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_losses": {}}  # of which no copy could be made, as they are in a graph

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """η times the routers' losses of the last forward, the mean over layers."""
        found, self._losses = list(self._losses.values()), {}
        return self.factor * torch.stack(found).mean() if found else None


def _routed(children: Sequence[ChildSpec], options: dict[str, Any]) -> tuple[dict[str, str], dict[str, Site]]:
    """For each layer the one whose router chooses for it, and the site that each router reads."""
    layers, _ = gated_layers(children)
    chooser = {at: at for at in layers}
    if options["router"] == "first_layer":
        ordered = sorted(layers.items(), key=lambda found: found[1].layer or 0, reverse=True)
        first = {site.stack: at for at, site in ordered}
        chooser = {at: first[site.stack] for at, site in layers.items()}
    return chooser, {at: site for at, site in layers.items() if at in chooser.values()}

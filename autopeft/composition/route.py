"""`route`: children as experts, mixed by weights that depend on the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.composition.contract import (
    Child,
    ChildSpec,
    CompositionOptions,
    CompositionTraits,
    alters_weights,
    by_site,
    check_learn_together,
    mixed,
    require_gradient,
)
from autopeft.composition.positions import mean_over_positions, real_positions
from autopeft.composition.registry import register
from autopeft.errors import CompositionError
from autopeft.method import Call, LossStep, ParameterCount, WeightTarget
from autopeft.nn import PerSite, Router
from autopeft.spec import Site

__all__ = ["Route"]


class RouteOptions(CompositionOptions):
    """See `autopeft.composition.route`."""

    level: Literal["token", "sequence"] = Field(default="token", description="what has weights of its own")
    top_k: int | None = Field(default=None, ge=1, le=64, description="weights that are kept; default: all")
    renormalize: bool = Field(default=True, description="make the kept weights sum to 1")
    balance: float = Field(default=0.0, ge=0, le=10, description="factor of the load-balance loss")

    @model_validator(mode="after")
    def _balance_needs_a_choice(self) -> RouteOptions:
        if self.balance and self.top_k is None:
            raise ValueError("'balance' is for routes that choose; set 'top_k', or leave it out")
        return self


@register("route")
class Route(nn.Module):
    """δ = Σₑ pₑ·δₑ with p = softmax(W·x) over the children, one router for each site (see `nn.Router`).

    `level: token` routes each position by its own x, `level: sequence` the whole sequence by the mean of x
    over its real positions (then prefixes may be routed too: their keys and values are multiplied by p).
    `top_k` keeps the k largest weights, which `renormalize` makes sum to 1; `balance` is the factor of the
    load-balance loss, summed over the sites. A site with one child has no router. Children keep their own
    scales (LoRA's α/r), unless a gate stands in front of the route. A route by sequence lets a
    decoder's earlier positions see later ones. The load-balance loss is that of the rows that go
    through the model together, as is usual: that of micro-batches is their mean, not that of the whole
    batch. All children are computed, also those whose weight is 0. Soft mixing: Zadouri et al. 2024,
    arXiv:2309.05444 (over LoRAs, MoLORA); top-k: Li et al. 2024, arXiv:2404.15159. E·width parameters
    for each site with E > 1 children.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = "children as experts, mixed by weights that depend on the input"
    traits: ClassVar[CompositionTraits] = CompositionTraits(copies=True, batch_terms="balance")
    Options = RouteOptions

    def __init__(self, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        super().__init__()
        self.level, self.balance = options["level"], float(options["balance"])
        sites, self.experts = by_site(children)
        self.routers: PerSite[Router] = PerSite(
            {
                key: Router(
                    site.in_features,
                    len(self.experts[key]),
                    top_k=options["top_k"],
                    renormalize=options["renormalize"],
                    balanced=self.balance > 0,
                )
                for key, site in sites.items()
                if len(self.experts[key]) > 1
            }
        )

    @classmethod
    def check(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> None:
        check_learn_together("route", children)
        for child in children:
            if "weight" in child.ways:
                raise alters_weights("route", child)
            if "prompt" in child.ways:
                raise CompositionError(
                    f"{child.label} adds rows to the sequence before any layer could feed a router; list it "
                    "under `model:`, outside the route."
                )
            if "kv" in child.ways and options["level"] == "token":
                raise CompositionError(
                    f"{child.label} prepends keys and values, which all positions of a sequence share, so "
                    "no position can choose its own; write `level: sequence`, or take a gate."
                )
        top_k = options["top_k"] or 0
        if top_k == 1 and options["renormalize"] and not options["balance"]:
            raise CompositionError(
                "This route keeps one expert and makes its weight 1, whatever the router says, so that the "
                "router would never learn; write `renormalize: false`, keep two, or give `balance`."
            )
        sites, experts = by_site(children)
        for key, names in experts.items():
            if top_k > len(names):
                raise CompositionError(
                    f"This route keeps {top_k} experts, but has {len(names)} at {sites[key].path}; lower "
                    "`top_k`, or give all experts the same sites."
                )

    @classmethod
    def parameter_count(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> ParameterCount:
        sites, experts = by_site(children)
        n = sum(Router.size(sites[k].in_features, len(e)) for k, e in experts.items() if len(e) > 1)
        return ParameterCount(n, n)

    @classmethod
    def build(cls, children: Sequence[ChildSpec], options: dict[str, Any]) -> Route:
        return cls(children, options)

    def pools(self, site: Site) -> bool:
        return self.level == "sequence" and len(self.experts[site.key]) > 1

    def weights(self, site: Site, x: Tensor, call: Call) -> Tensor:
        """p of every expert: (batch, positions or 1, experts) from x (batch, positions, width), or (1,) where
        there is only one, which needs no router.

        Raises:
            CompositionError: the sequence cannot be pooled (see `mean_over_positions`), or its load-balance
                loss would get no gradient.
        """
        if len(self.experts[site.key]) == 1:
            return x.new_ones(1)
        router, mask = self.routers[site], None
        if self.level == "sequence":
            x = mean_over_positions(x, site, call, "A route by sequence")
        elif router.balanced and not call.context.lost:
            mask = real_positions(site, call)
            if (
                mask is not None and mask.shape != x.shape[:-1]
            ):  # of a cache's positions, or x comes in chunks
                mask = None
        if router.balanced and self.training:
            require_gradient("The load-balance loss of a route")
        p: Tensor = router(x, mask, counted=not call.context.further)
        return p.to(x.dtype)

    def delta(self, site: Site, children: Sequence[Child], x: Tensor, y: Tensor, call: Call) -> Tensor:
        # Experts on the input side have altered x by the time that those on the output side act.
        p = self.weights(site, x if call.entered is None else call.entered, call)
        return mixed(p, self.experts[site.key], children, x, y, call)

    def weight(
        self, target: WeightTarget, children: Sequence[Child], original: Tensor, current: Tensor
    ) -> Tensor:
        raise CompositionError("A route holds no weight methods.")

    def key_value(
        self, site: Site, children: Sequence[Child], x: Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        p, order = self.weights(site, x, call), self.experts[site.key]
        keys, values = [], []
        for child in children:
            k, v = child.key_value(x, call)
            column = _column(p, order.index(child.name))
            keys.append(column * k)
            values.append(column * v)
        return torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """`balance` times the load-balance losses of the last forward, summed over the sites."""
        losses = [router.take_loss() for router in self.routers.children_by_site()]
        found = [loss for loss in losses if loss is not None]
        return self.balance * torch.stack(found).sum() if found else None


def _column(p: Tensor, index: int) -> Tensor:
    return p[..., index : index + 1]

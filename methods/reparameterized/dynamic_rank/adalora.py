"""AdaLoRA: a budget of ranks, given to the sites that need them most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.method import Explicit, LossStep, MethodConfig, ParameterCount, PeftFormat, Traits, register
from autopeft.nn import ScaledMaps, Sensitivity, Triplets, plain_loras, triplets_at
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["AdaLoRA"]


class AdaLoRAModule(ScaledMaps[Triplets]):
    """Triplets for each site, and the one budget that they share.

    The buffer `kept` (n × r₀) is the latest allocation, `None` in the deployed form, as is `sensitivity`.
    """

    sensitivity: Sensitivity | None
    kept: Tensor | None

    def __init__(self, children: dict[str, Triplets], config: AdaLoRA.Config) -> None:
        super().__init__(children, config.scale)
        self.config = config
        entries = sum(p.numel() for p in self.parameters())
        self.sensitivity = Sensitivity(entries, config.beta1, config.beta2)
        self.register_buffer("kept", torch.ones(len(children), config.first, dtype=torch.bool))

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """γ times the mean over all P and Q of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F."""
        if self.kept is None or not self.config.orthogonality:
            return None
        grams = [g for c in self.children_by_site() for g in (c.P.T @ c.P, c.Q @ c.Q.T)]
        stacked = torch.stack(grams)
        eye = torch.eye(stacked.shape[-1], device=stacked.device, dtype=stacked.dtype)
        norms: Tensor = torch.linalg.vector_norm(stacked - eye, dim=(1, 2))
        return self.config.orthogonality * norms.mean()

    def after_step(self, step: int, total: int) -> None:
        """Look at the step's gradients, and allocate anew where it is time."""
        if self.sensitivity is None:
            return
        c, t = self.config, step + 1
        warmup, final = round(c.warmup * total), round(c.final * total)
        if t < total - final:
            self.sensitivity.observe(self.parameters())
        if t >= total - final or (t > warmup and t % c.interval == 0):
            n = len(self.at)
            self.allocate(triplets_at(t, total, c.first * n, c.rank * n, warmup, final))

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """The triplets as one pair (see `ScaledPairs`)."""
        own = self[site]
        return own.E[:, None] * own.Q, own.P, self.scale

    def parts(self) -> dict[str, list[nn.Parameter]]:
        children = self.children_by_site()
        return {"P": [c.P for c in children], "E": [c.E for c in children], "Q": [c.Q for c in children]}

    def up_parameters(self) -> list[nn.Parameter]:
        """P of every site, which stands where B does in LoRA."""
        return [child.P for child in self.children_by_site()]

    def settled(self, step: int, total: int) -> bool:
        """In the final phase: states before it have ranks that will go."""
        return self.kept is None or step >= total - round(self.config.final * total)

    def scores(self) -> Tensor:
        """(n, r₀): S(E_i) + mean_j S(P_ji) + mean_j S(Q_ij)."""
        assert self.sensitivity is not None
        rows = []
        parts = iter(self.sensitivity.score().split([p.numel() for p in self.parameters()]))
        for child in self.children_by_site():
            p, e, q = next(parts), next(parts), next(parts)
            rows.append(e + p.view_as(child.P).mean(dim=0) + q.view_as(child.Q).mean(dim=1))
        return torch.stack(rows)

    @torch.no_grad()
    def allocate(self, budget: int) -> None:
        """Keep the `budget` triplets of highest score, of equal ones the first, and zero E of the others."""
        assert self.kept is not None
        best = self.scores().flatten().sort(descending=True, stable=True).indices[:budget]
        self.kept.zero_().view(-1)[best] = True
        for child, kept in zip(self.children_by_site(), self.kept, strict=True):
            child.E.masked_fill_(~kept, 0.0)

    def finish(self) -> None:
        """Cut to the target, also where training ended before its schedule did."""
        if self.kept is not None:
            self.allocate(self.config.rank * len(self.at))

    def explicit(self, sites: Sequence[Site]) -> Explicit:
        """LoRAs of as many ranks as triplets are kept."""
        lengths = (
            [len(c.E) for c in self.children_by_site()] if self.kept is None else self.kept.sum(1).tolist()
        )
        ranks = dict(zip(self.at, lengths, strict=True))
        return plain_loras(self, sites, lambda site: int(ranks[site.key]))

    def deploy(self) -> None:
        """Drop the triplets that are pruned, and what only training needs."""
        if self.kept is None:
            return
        for child, kept in zip(self.children_by_site(), self.kept, strict=True):
            # Between two allocations pruned triplets may have come back to life.
            acts = kept | (child.E != 0)
            child.hold(child.P[:, acts], child.E[acts], child.Q[acts])
        self.sensitivity = self.kept = None

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for key, child in zip(self.at, self.children_by_site(), strict=True):
            rank = min(self.config.first, shapes[f"at.{key}.E"][0])
            p, q = child.P, child.Q
            child.hold(p.new_zeros(len(p), rank), child.E.new_zeros(rank), q.new_zeros(rank, q.shape[1]))


@register("adalora")
class AdaLoRA:
    """y = W₀x + b₀ + s·P·diag(E)·Q·dropout(x), s = α/r₀; training cuts n·r₀ triplets (P_i, E_i, Q_i) to n·r.

    Zhang et al. 2023, arXiv:2303.10512, §3. The n sites of the entry share one budget b(t) (`triplets_at`).
    After each step the sensitivity I = |w·∂w| of every entry w is smoothed to Ī, and |I − Ī| to Ū; each
    `interval` steps after the warm-up the b(t) triplets of highest score S(E_i) + mean S(P_i) + mean S(Q_i),
    S = Ī·Ū, are kept and E_i of the others is zeroed, from where it may come back. The final phase fixes the
    pattern. Exactly b(t) are kept (the authors' code cuts at a threshold and drops ties with it). The loss
    gets γ·mean(‖PᵀP − I‖_F, ‖QQᵀ − I‖_F). P and Q start from N(0, 0.02²), E at zero, towards which it decays:
    the identity at init. Behind a gate the gate takes the place of s.

    The schedule needs the planned number of steps; a training that is stopped early is cut to n·r at its end,
    and with `patience` only states of the final phase count. With so few steps that no score was measured the
    first triplets are kept. Two entries have a budget each. Mergeable. Trained: r₀·(in + out + 1) for each
    site; deployed: Σ r_m·(in_m + out_m + 1) with Σ r_m = n·r, which depends on the data: a budget counts the
    n·r largest triplets.
    """

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=LINEAR_SITES,
        default_sites=tuple(s for s in LINEAR_SITES if s != "qkv"),
        mergeable=True,
        stochastic=True,
        rowwise=True,
        data_dependent=True,
    )
    size_field: ClassVar[str] = "rank"
    part_names = ("P", "E", "Q")
    peft = PeftFormat("lora")

    class Config(MethodConfig):
        rank: int = Field(default=8, ge=1, le=1024, description="r, the mean rank at the end")
        initial_rank: int | None = Field(default=None, ge=1, le=2048, description="r₀; default 1.5·rank")
        alpha: float | None = Field(default=None, gt=0, le=8192, description="α; default 2·initial_rank")
        dropout: float = Field(default=0.0, ge=0, lt=1)
        orthogonality: float = Field(default=0.1, ge=0, le=100, description="γ")
        beta1: float = Field(default=0.85, gt=0, lt=1, description="β₁, smooths the sensitivity")
        beta2: float = Field(default=0.85, gt=0, lt=1, description="β₂, smooths its uncertainty")
        interval: int = Field(default=10, ge=1, description="ΔT, steps between two allocations")
        warmup: float = Field(default=0.1, ge=0, lt=1, description="t_i, as a share of all steps")
        final: float = Field(default=0.5, ge=0, lt=1, description="t_f, as a share of all steps")

        @model_validator(mode="after")
        def _fits(self) -> AdaLoRA.Config:
            if self.initial_rank is not None and self.initial_rank < self.rank:
                raise ValueError(f"initial_rank={self.initial_rank} is below rank={self.rank}")
            if self.warmup + self.final >= 1:
                raise ValueError(f"warmup={self.warmup} and final={self.final} must come to less than 1")
            return self

        @property
        def first(self) -> int:
            """r₀."""
            return math.ceil(1.5 * self.rank) if self.initial_rank is None else self.initial_rank

        @property
        def scale(self) -> float:
            return 2.0 if self.alpha is None else self.alpha / self.first

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def change_rank(self) -> int:
        """The largest rank of what it adds to a map's weight."""
        return self.config.first

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        costs = sorted((s.in_features + s.out_features + 1 for s in sites), reverse=True)
        whole, rest = divmod(c.rank * len(costs), c.first)
        largest = c.first * sum(costs[:whole]) + sum(rest * cost for cost in costs[whole : whole + 1])
        return ParameterCount(largest, c.first * sum(costs))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        children = {s.key: Triplets(s.in_features, s.out_features, c.first, dropout=c.dropout) for s in sites}
        return AdaLoRAModule(children, c)

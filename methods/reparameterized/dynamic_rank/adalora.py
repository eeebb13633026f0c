"""AdaLoRA: a budget of ranks, given to the sites that need them most."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.method import Explicit, LossStep, MethodConfig, ParameterCount, PeftFormat, Traits, register
from autopeft.nn import ScaledMaps, plain_loras
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["AdaLoRA"]


class Sensitivity(nn.Module):
    """S = Ī·Ū of N entries: Ī ← β₁·Ī + (1 − β₁)·I and Ū ← β₂·Ū + (1 − β₂)·|I − Ī|, with I = |w·∂w|.

    Zhang et al. 2022, arXiv:2206.12562, as AdaLoRA uses it. Buffers `mean` and `uncertainty` (N) start at
    zero; entries are in the order of the parameters, flattened.
    """

    mean: Tensor
    uncertainty: Tensor

    def __init__(self, entries: int, beta1: float, beta2: float) -> None:
        super().__init__()
        self.beta1, self.beta2 = beta1, beta2
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("uncertainty", torch.zeros(entries))

    @torch.no_grad()
    def observe(self, parameters: Iterable[Tensor]) -> None:
        """Take in the present values and gradients; a parameter without one counts as zeros."""
        found = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in parameters]
        weights, grads = (torch.cat([t.flatten() for t in tensors]) for tensors in zip(*found, strict=True))
        now = (weights * grads).abs()
        self.mean.lerp_(now, 1 - self.beta1)
        self.uncertainty.lerp_((now - self.mean).abs(), 1 - self.beta2)

    def score(self) -> Tensor:
        """S (N)."""
        return self.mean * self.uncertainty


class Triplets(nn.Module):
    """x ↦ P·diag(E)·Q·dropout(x) with P (out × r) and Q (r × in) from N(0, 0.02²) and E (r) zero."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, dropout: float) -> None:
        super().__init__()
        self.P = nn.Parameter(torch.randn(out_features, rank) * 0.02)
        self.E = nn.Parameter(torch.zeros(rank))
        self.Q = nn.Parameter(torch.randn(rank, in_features) * 0.02)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return nn.functional.linear(nn.functional.linear(x, self.E[:, None] * self.Q), self.P)

    def product(self) -> Tensor:
        """P·diag(E)·Q, (out × in)."""
        return self.P @ (self.E[:, None] * self.Q)

    def hold(self, p: Tensor, e: Tensor, q: Tensor) -> None:
        """Consist of these from now on, whatever their number."""
        self.P, self.E, self.Q = (nn.Parameter(t.detach().clone()) for t in (p, e, q))


def triplets_at(step: int, total: int, first: int, last: int, warmup: int, final: int) -> int:
    """b(t): how many triplets are kept after `step` of `total` steps.

    `first` up to step `warmup`, `last` from `total − final` on, a falling cubic in between.
    """
    if step >= total - final:
        return last
    if step <= warmup:
        return first
    left = 1 - (step - warmup) / (total - final - warmup)
    return int(last + (first - last) * left**3)


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
            [len(c.E) for c in self.children_by_site()]
            if self.kept is None
            else self.kept.sum(1).cpu().tolist()
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

"""MixLoRA: the FFN as a sparse mixture of experts, each the frozen FFN with LoRAs of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.devices import full_precision
from autopeft.errors import CompositionError
from autopeft.method import Call, LossStep, MethodConfig, ParameterCount, Traits, register
from autopeft.nn import LowRankPair, PerSite
from autopeft.spec import BackboneSpec, Site

__all__ = ["MixLoRA", "pooled_balance"]

_LINEARS = ("gate_proj", "up", "down")


def pooled_balance(p: Tensor, chosen: Tensor) -> Tensor:
    """E·Σₑ fₑ·Pₑ from weights p (rows, experts) and choices (rows, k) of all layers' rows together: fₑ is the
    share of rows that choose e, added up over the k choices, Pₑ the mean weight. k where both are uniform."""
    experts = p.shape[-1]
    shares = nn.functional.one_hot(chosen, experts).sum(1).to(p.dtype).mean(0)
    return experts * (shares * p.mean(0)).sum()


@dataclass
class _Rows:
    """How the rows of a layer's FFN are laid out while its experts run: those of expert 0 first.

    Attributes:
        bounds: the first row of each expert, and the end.
    """

    bounds: list[int]


class Experts(nn.Module):
    """The low-rank pairs of all experts at one linear."""

    def __init__(self, site: Site, config: MixLoRA.Config) -> None:
        super().__init__()
        self.pairs = nn.ModuleList(
            LowRankPair(site.in_features, site.out_features, config.rank, dropout=config.dropout)
            for _ in range(config.experts)
        )

    def forward(self, x: Tensor, rows: _Rows) -> Tensor:
        """B·A·x of each expert on its own rows, from x (1, rows, in)."""
        parts = [x[:, a:b] for a, b in zip(rows.bounds, rows.bounds[1:], strict=False)]
        return torch.cat([pair(part) for pair, part in zip(self.pairs, parts, strict=True)], dim=1)


class MixLoRAModule(nn.Module):
    """Routers of the FFNs, and experts of their linears."""

    def __init__(self, sites: Sequence[Site], config: MixLoRA.Config) -> None:
        super().__init__()
        self.config = config
        self.linears = PerSite({s.key: Experts(s, config) for s in sites if s.name != "ffn"})
        self.routers = PerSite(
            {s.key: nn.Linear(s.in_features, config.experts, bias=False) for s in sites if s.name == "ffn"}
        )
        for router in self.routers.children_by_site():
            nn.init.normal_(router.weight, std=0.02)
        self._rows: dict[str, _Rows] = {}  # of the layer that is computed now
        self._routed: dict[str, tuple[Tensor, Tensor]] = {}  # of the last forward, by layer

    def side(self, site: Site) -> Literal["input", "output"] | None:
        return None if site.name == "ffn" else "output"

    def reads(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        return x

    def around(self, site: Site, x: Tensor, call: Call) -> Tensor:
        """Σₑ wₑ·FFNₑ(x) over the k experts of each position, x (batch, positions, width)."""
        flat, router, k = x.flatten(0, -2), self.routers[site], self.config.top_k
        with full_precision(x.device):
            p = nn.functional.linear(flat.float(), router.weight.float()).softmax(-1)
        kept, chosen = p.topk(k, dim=-1)
        weights = (kept / kept.sum(-1, keepdim=True)).to(x.dtype)
        self._note(site, p, chosen, x, call)

        # The rows of each expert one after the other: each choice of a position is a row.
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.config.experts).cpu().tolist()
        bounds = [0]
        for count in counts:
            bounds.append(bounds[-1] + int(count))
        layer = _layer(site)
        self._rows[layer] = _Rows(bounds)
        try:
            found = cast(Any, call.region)(flat[order // k][None])[0]
        finally:
            del self._rows[layer]
        total = torch.zeros_like(flat, dtype=found.dtype)
        total = total.index_add(0, order // k, found * weights.flatten()[order, None])
        return total.view_as(x)

    def _note(self, site: Site, p: Tensor, chosen: Tensor, x: Tensor, call: Call) -> None:
        """Keep what the balance loss counts, padding left out."""
        # A layer that is recomputed for its gradient comes by once more, in the middle of backward.
        again = torch._C._current_graph_task_id() != -1
        if not self.training or not self.config.balance or call.context.further or again:
            return
        if not torch.is_grad_enabled():
            raise CompositionError(
                "The balance loss of mixlora gets no gradient here: under reentrant checkpointing use "
                "use_reentrant=False, or `balance: 0`; to predict, call model.eval() first."
            )
        mask = call.context.mask
        if mask is not None and mask.shape == x.shape[:-1]:
            real = mask.flatten().bool()
            p, chosen = p[real], chosen[real]
        self._routed[_layer(site)] = p, chosen

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        rows = self._rows.get(_layer(site))
        if rows is None:
            raise CompositionError(
                f"The FFN around {site.path} does not run through its module, where mixlora sends "
                "positions to "
                "experts; take molora, or lora, on this family."
            )
        out: Tensor = self.linears[site](x, rows)
        return out * self.config.scale

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """`balance` times the balance loss of the rows of all layers together, of the last forward."""
        found, self._routed = list(self._routed.values()), {}
        if not found:
            return None
        p, chosen = (torch.cat(parts) for parts in zip(*found, strict=True))
        return self.config.balance * pooled_balance(p, chosen)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}, "_routed": {}}  # tensors in a graph cannot be copied

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """Factors of the experts, and the routers."""
        pairs = [cast(LowRankPair, pair) for e in self.linears.children_by_site() for pair in e.pairs]
        routers: list[nn.Parameter] = [router.weight for router in self.routers.children_by_site()]  # type: ignore[misc]
        return {"down": [pair.A for pair in pairs], "up": [pair.B for pair in pairs], "routers": routers}

    def up_parameters(self) -> list[nn.Parameter]:
        return list(self.parts()["up"])


def _layer(site: Site) -> str:
    return f"{site.stack}-{site.layer}"


@register("mixlora")
class MixLoRA:
    """y = Σ_{e∈S} wₑ·FFNₑ(x): FFNₑ is the frozen FFN with LoRAs of expert e at its linears, S the k experts
    of a position with the largest p = softmax(W_r·x), wₑ = pₑ/Σ_S p.

    Li et al. 2024, arXiv:2404.15159, as in the authors' code (MoE-PEFT): routers are computed in fp32 and
    N(0, 0.02²), without bias; A is Kaiming-uniform (a = √5), B zero: the identity at init. Their plain LoRAs
    at q, k, v and o stand beside it (the recipe `mixlora`). Each expert computes its own rows alone. The
    frozen maps run once for each choice of a position: the authors share the first two among the choices,
    which is cheaper and the same function. What else acts within the FFN sees these rows, one after the
    other, so that only what acts on each position by itself can stand there.

    `balance` is the factor of E·Σ f·P over the positions of all layers together, padding left out
    (`pooled_balance`); 0.001 is what the released recipes train with. Padding is routed all the same. The
    FFN has to be one module (Llama, Mistral, Qwen, Gemma, GPT-2, …). Not mergeable. E·r·Σ(in + out) of its
    linears and E·d parameters for each layer.
    """

    traits = Traits(
        ways=frozenset({"region", "hook"}),
        sites=("ffn", *_LINEARS),
        default_sites=("ffn", *_LINEARS),
        stochastic=True,
        batch_terms=True,
        gateable=False,
    )
    size_field: ClassVar[str] = "rank"
    part_names: ClassVar[tuple[str, ...]] = ("down", "up", "routers")

    class Config(MethodConfig):
        experts: int = Field(default=8, ge=1, le=256, description="E")
        top_k: int = Field(default=2, ge=1, le=64, description="k, experts of a position")
        rank: int = Field(default=16, ge=1, le=4096, description="r, of each expert")
        alpha: float | None = Field(default=None, gt=0, description="α; s = α/r; default: 2·r")
        dropout: float = Field(default=0.05, ge=0, lt=1, description="in front of A")
        balance: float = Field(default=0.001, ge=0, le=10, description="factor of the balance loss")

        @model_validator(mode="after")
        def _chooses(self) -> MixLoRA.Config:
            if self.top_k > self.experts:
                raise ValueError(f"top_k={self.top_k} keeps more experts than there are ({self.experts})")
            if self.sites is not None and ("ffn" not in self.sites or len(self.sites) < 2):
                raise ValueError(
                    f"'sites' names 'ffn', where positions are routed, and linears in it, but got "
                    f"{self.sites}"
                )
            return self

        @property
        def scale(self) -> float:
            return 2.0 if self.alpha is None else self.alpha / self.rank

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        apart = next((site for site in sites if site.name == "ffn" and not site.whole), None)
        if apart is not None:
            raise CompositionError(
                f"mixlora sends the positions of {apart} to experts, and the FFN of {spec.family!r} is "
                "no single "
                "module that it could run in parts; take a family where it is (Llama, Mistral, Qwen, "
                "GPT-2, …), "
                "or a route of LoRAs (molora)."
            )
        if all(site.name == "ffn" for site in sites):
            raise CompositionError(
                f"mixlora finds no linear map in the FFN of {spec.family!r} for its experts; take lora, or a "
                "family whose FFN has some."
            )
        n = sum(
            c.experts * (s.in_features if s.name == "ffn" else c.rank * (s.in_features + s.out_features))
            for s in sites
        )
        return ParameterCount(n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return MixLoRAModule(sites, self.config)

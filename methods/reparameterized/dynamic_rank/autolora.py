"""AutoLoRA: ranks by meta learning, then LoRA from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import OuterStep, ParameterCount, PeftFormat, Phase, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import LowRankPair, PrunedPair, PrunedPairs, hypergradient
from autopeft.spec import BackboneSpec, Site

__all__ = ["AutoLoRA", "surviving"]

_ROUNDING = 1e-5  # of 1/k, by which a weight may miss it


def surviving(selection: Tensor, *, reference: bool = False) -> Tensor:
    """Which of the k terms stay, as bools (k): those with softmax(c) ≥ 1/k, and always the largest c.

    With `reference`, as the authors' `run_glue_search.py` has it: c/Σc in place of the softmax.
    """
    c = selection.detach().double()
    weights = c / c.sum() if reference else c.softmax(dim=0)
    stays = weights >= (1 - _ROUNDING) / len(c)
    stays[c.argmax()] = True
    return stays


class SelectedPair(PrunedPair):
    """x ↦ Σⱼ softmax(c)ⱼ·Bⱼ·Aⱼ·dropout(x) with c (rank) at one; without c a plain pair."""

    selection: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, config: AutoLoRA.Config) -> None:
        super().__init__(in_features, out_features, config.rank, dropout=config.dropout)
        self.selection = nn.Parameter(torch.ones(config.rank))
        self.reference = config.reference_threshold

    @property
    def rank(self) -> int:
        """What the selection has it be at present."""
        if self.selection is None:
            return len(self.A)
        return int(surviving(self.selection, reference=self.reference).sum())

    def down(self) -> Tensor:
        """diag(softmax(c))·A, (rank × in)."""
        return self.A if self.selection is None else self.selection.softmax(dim=0)[:, None] * self.A

    def restart(self, rank: int) -> None:
        """Become a plain pair of this rank with LoRA's init."""
        out_features, in_features = len(self.B), self.A.shape[1]
        fresh = LowRankPair(in_features, out_features, rank).to(self.A)
        self.hold(fresh.A, fresh.B)
        self.selection = None

    def deploy(self) -> None:
        """Fold the weights of the terms into A."""
        if self.selection is not None:
            self.hold(self.down(), self.B)
            self.selection = None


class AutoLoRAModule(PrunedPairs[SelectedPair]):
    """A pair with selection variables for each site until the ranks are found, a plain pair afterwards."""

    def __init__(self, children: dict[str, SelectedPair], config: AutoLoRA.Config) -> None:
        super().__init__(children, config.scale, config.rank)
        self.config = config
        self.meta: torch.optim.Adam | None = None

    def scale_at(self, site: Site) -> float:
        """α/r_m at a site of rank r_m, which is α/k until the ranks are found; or α/k for good."""
        held = max(1, len(self[site].A))
        return self.scale * self.largest / held if self.config.rescale else self.scale

    def selections(self) -> list[nn.Parameter]:
        """c of every site; none once the ranks are found."""
        return [pair.selection for pair in self.children_by_site() if pair.selection is not None]

    def phases(self) -> list[Phase]:
        """`search` and `retrain`, whose output is `ranks()`; one plain phase where the ranks are there."""
        c = self.config
        if not self.selections():
            return [Phase("train")]
        return [
            Phase(
                "search",
                c.search,
                held_out=c.held_out,
                begin=self.begin,
                outer=self.select,
                output=self.ranks,
            ),
            Phase("retrain", 1 - c.search, anew=True, begin=self.restart, output=self.ranks),
        ]

    def begin(self) -> None:
        """Start the search with an Adam of its own for the selection variables."""
        rate = self.config.selection_learning_rate
        self.meta = torch.optim.Adam(self.selections(), lr=rate, betas=(0.5, 0.999))

    def select(self, step: OuterStep) -> None:
        """A step of the selection variables along the hypergradient."""
        assert self.meta is not None
        selections = self.selections()
        for selection, gradient in zip(selections, hypergradient(step, selections), strict=True):
            selection.grad = gradient
        self.meta.step()
        self.meta.zero_grad()

    def restart(self) -> None:
        """Put a LoRA of the rank that was found, at its init, at every site."""
        for pair in self.children_by_site():
            pair.restart(pair.rank)
        self.meta = None

    def settled(self, step: int, total: int) -> bool:
        """Once the ranks are found: a search goes on to its end."""
        return not self.selections()

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"down": [pair.A for pair in self.children_by_site()], "up": self.up_parameters()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The factors; the selection variables are trained by `select`."""
        return [{"params": [f for pair in self.children_by_site() for f in (pair.A, pair.B)]}]

    def deploy(self) -> None:
        """Plain pairs: an unfinished search leaves all terms, weighted as they are."""
        super().deploy()
        self.meta = None


@register("autolora")
class AutoLoRA(LowRankMethod):
    """y = W₀x + b₀ + s·Σⱼ softmax(c)ⱼ·Bⱼ·Aⱼ·dropout(x), j = 1…k; then LoRA with the ranks that c has found.

    Zhang et al. 2024, arXiv:2403.09113. The share `search` of the steps is a bilevel problem: all that the
    recipe trains learns from the rows D₁, and c (k), with an Adam of its own (β = 0.5, 0.999), from the
    held-out rows D₂, along the gradient of the loss there through one step of gradient descent on D₁
    (`hypergradient`). The rank of a site is then the number of its softmax(c)ⱼ ≥ 1/k. The other steps train
    from scratch, on all rows: LoRAs of these ranks, and all else that the recipe trains from its first
    values.

    The authors' repository has two such searches. `run_glue_search.py`, which its README tells to start,
    begins with c at one and compares c/Σc with 1/k (`reference_threshold: true`); in the paper that is an
    ablation without the constraint Σα = 1 (§5.5). `run_bionlp_search.py` begins with c at zero and compares
    softmax(c), as the paper does (§4.4) and as this method does by default. Both weigh the terms by
    softmax(c), hold 0.3 of the rows out and train c at 3e-4. A third, in `finetune/lora_glue.py`, steps c
    along its plain gradient at the paper's 1e-3, and is not built.

    A (k × in) is Kaiming-uniform (a = √5), B (out × k) zero, c one: the identity at init. s is α/k in the
    search and α/r_m at a site of rank r_m afterwards, as in the authors' retraining (finetune/peft/tuners/
    lora.py); without `rescale` it stays α/k when ranks fall. α is 16 and k is 8 there.
    The authors' search trains the factors alone; here the head and the recipe's other methods are part of the
    lower level. All weights start at 1/k itself, so that even a short search drops about half of the terms
    (theirs too). A step of the search costs about five others. Such a training cannot pause. Behind a gate
    the gate takes the place of s. Mergeable.

    Trained: k·(in + out + 1) for each site; deployed: Σ r_m·(in + out) with 1 ≤ r_m ≤ k, which depends on
    the data: a budget counts k·(in + out).
    """

    traits = replace(LowRankMethod.traits, data_dependent=True, phased=True)
    peft = PeftFormat("lora")

    class Config(LowRankConfig):
        rank: int = Field(default=8, ge=1, le=1024, description="k, the largest rank")
        search: float = Field(default=0.5, gt=0, lt=1, description="share of the steps that search")
        held_out: float = Field(default=0.3, gt=0, lt=1, description="share of the rows in D₂")
        selection_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="of c")
        rescale: bool = Field(
            default=True, description="train at α/r_m once the ranks are found, else at α/k"
        )
        reference_threshold: bool = Field(
            default=False, description="compare c/Σc with 1/k, as the authors' run_glue_search.py"
        )

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.rank * (s.in_features + s.out_features) for s in sites)
        return ParameterCount(n, n + self.config.rank * len(sites))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {s.key: SelectedPair(s.in_features, s.out_features, c) for s in sites}
        return AutoLoRAModule(pairs, c)

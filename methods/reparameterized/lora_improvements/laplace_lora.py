"""Laplace-LoRA: a Gaussian posterior over LoRA's factors, fitted when training has ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Need, Objective, ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import (
    KroneckerCurvature,
    LowRankPair,
    ScaledPairs,
    UncertainPair,
    fit_precision,
    logit_covariance,
    observe_curvature,
)
from autopeft.spec import BackboneSpec, Site

__all__ = ["LaplaceLoRA"]


class LaplaceLoRAModule(ScaledPairs[LowRankPair]):
    """LoRA's pairs and the posterior of the uncertain ones; `posterior_precision` is the prior's p, 0 while
    there is no posterior."""

    posterior_precision: Tensor

    def __init__(self, children: dict[str, LowRankPair], scale: float, config: LaplaceLoRA.Config) -> None:
        super().__init__(children, scale)
        self.config = config
        self.register_buffer("posterior_precision", torch.zeros(()))

    @property
    def samples(self) -> int:
        """Draws for a prediction; 0 while it is the mean's."""
        return self.config.samples if bool(self.posterior_precision > 0) else 0

    def before_step(self, step: int, total: int) -> None:
        """What was fitted belongs to other weights."""
        self.posterior_precision.zero_()

    def _uncertain(self) -> list[UncertainPair]:
        return [pair for pair in self.children_by_site() if isinstance(pair, UncertainPair)]

    def _called(self, logits: Tensor) -> list[UncertainPair]:
        """The pairs that the recorded forward ran.

        Raises:
            MethodError: it had other rows than the logits.
        """
        pairs = [pair for pair in self._uncertain() if pair.seen]
        rows = {len(call.x) for pair in pairs for call in pair.seen}
        if rows - {len(logits)}:
            raise MethodError(
                f"laplace_lora needs the logits of each row that its sites see, but got {len(logits)} for "
                f"{max(rows)} rows; take one hybrid at a time, and `samples: 0` where rows are scored "
                "together."
            )
        return pairs

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, forwards leave what `covariance` and `conclude` need."""
        pairs = self._uncertain()
        for pair in pairs:
            pair.record()
        try:
            yield
        finally:
            for pair in pairs:
                pair.forget()

    def conclude(self, batches: Iterable[dict[str, Tensor]], objective: Objective) -> None:
        """Fit the curvature to all rows, then p."""
        self.posterior_precision.zero_()
        if not self.config.samples:
            return
        pairs = self._uncertain()
        curvatures = [c for pair in pairs for c in (pair.posterior_A, pair.posterior_B)]
        for curvature in curvatures:
            curvature.begin()
        rows = 0
        for batch in batches:
            with self.recording(), torch.enable_grad():
                logits = objective.logits(batch).float()
                if logits.shape[-1] == 1:
                    return
                observe_curvature(self._called(logits), logits)
            rows += len(logits)
        for curvature in curvatures:
            curvature.settle(rows)
        norm = sum(float(p.detach().square().sum()) for pair in pairs for p in (pair.A, pair.B))
        # Of an entry that no row has reached nothing is known but its mean.
        self.posterior_precision.fill_(self.config.prior_precision or fit_precision(norm, curvatures) or 0.0)

    def covariance(self, logits: Tensor) -> Tensor:
        """J·Σ·Jᵀ (rows, classes, classes) of the logits (rows, classes) that a recorded forward gave."""
        return logit_covariance(self._called(logits), logits, self.posterior_precision)


@register("laplace_lora")
class LaplaceLoRA(LowRankMethod):
    """LoRA, y = W₀x + b₀ + s·B·A·dropout(x), with a posterior N(θ, Σ) over its factors θ, Σ⁻¹ = H + p·I.

    Yang et al. 2024, arXiv:2308.13111. Training is LoRA's. When it has ended, one pass over its rows measures
    H, block by block for each A and B: K-FAC of the generalised Gauss-Newton matrix of the softmax, S ⊗ L
    with the rank-sided factor exact and the d-sided one of rank `n_kfac` (incremental SVD). Gradients are
    exact over classes (columns of the root of diag(π) − π·πᵀ), summed over rows and positions; outer products
    of a linear map's inputs are summed over positions and averaged over rows, as in the authors' code. Theirs
    count padding; here a position that the logits do not depend on counts in neither factor. Class weights do
    not count. The prior's mean is 0 and one p serves all factors: that of the largest marginal likelihood of
    Laplace, which is found exactly (the authors take up to 1,000 steps of Adam on log p). Where curvature is
    cut off by a small `n_kfac`, or next to none because the model is sure of its rows, that p is small and
    the logits are very uncertain, which can cost accuracy. A `prior_precision` is used as it is, and can be
    searched for on *select* (the authors' other way).

    Predictions are of the model linearised in θ: f ~ N(f(x), J·Σ·Jᵀ) with J of each row, the log of the
    mean softmax of joint `samples` (the authors take 100,000); several such entries add their covariances.
    That takes one backward for each class, and memory for rows · classes · |θ| numbers. A bare forward, and
    any prediction before training has ended, is the mean's. `sub: last_layer` has a posterior for the last
    layer alone that the entry sits in (the authors': for LoRA on the language-model head). Nothing is fitted
    for a regression, whose mean is the mean's prediction in any case, nor with `samples: 0`, which predicts
    with the mean and is mergeable. Language models are trained with `samples: 0` alone: theirs are
    distributions over the vocabulary for each token, for which J would be as large. Behind a gate the gate
    takes the place of s, held at its value.

    A is Kaiming-uniform (a = √5), B zero: the identity at init. r·(in + out) parameters for each site; beside
    them a posterior is stored: in·n + out·m + 2·(r² + r) + n + m numbers, n = min(n_kfac, in) and m =
    min(n_kfac, out), and p.
    """

    peft = PeftFormat("lora")

    class Config(LowRankConfig):
        sub: Literal["all", "last_layer"] = Field(default="all", description="which factors have a posterior")
        n_kfac: int = Field(default=10, ge=1, le=4096, description="rank of the d-sided Kronecker factors")
        prior_precision: float | None = Field(
            default=None, gt=0, le=1e6, description="p; default: that of the largest marginal likelihood"
        )
        samples: int = Field(default=1000, ge=0, le=1_000_000, description="draws of logits; 0: the mean")

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.samples:
            needs: frozenset[Need] = self.traits.needs | {"row_logits"}
            self.traits = replace(self.traits, mergeable=False, needs=needs)

    def _uncertain(self, sites: Sequence[Site]) -> list[Site]:
        """The sites that get a posterior."""
        if not self.config.samples:
            return []
        # A decoder comes behind its encoder, and outside the layers nothing is linear.
        places = {s.key: (s.stack == "decoder", s.layer or 0) for s in sites}
        return [s for s in sites if self.config.sub == "all" or places[s.key] == max(places.values())]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        count = super().parameter_count(sites, spec)
        r, n = self.config.rank, self.config.n_kfac
        sides = [side for s in self._uncertain(sites) for side in (s.in_features, s.out_features)]
        return replace(count, state=1 + sum(KroneckerCurvature.size(r, side, n) for side in sides))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        uncertain = {s.key for s in self._uncertain(sites)}
        pairs = {s.key: self._pair(s, s.key in uncertain) for s in sites}
        return LaplaceLoRAModule(pairs, self.config.scale, self.config)

    def _pair(self, site: Site, uncertain: bool) -> LowRankPair:
        c, sizes = self.config, (site.in_features, site.out_features, self.config.rank)
        if not uncertain:
            return LowRankPair(*sizes, dropout=c.dropout)
        return UncertainPair(*sizes, dropout=c.dropout, curvature_rank=c.n_kfac)

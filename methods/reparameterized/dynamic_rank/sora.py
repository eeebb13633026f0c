"""SoRA: sparse low-rank adaptation, gated ranks that go out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.method import LossStep, ParameterCount, PeftFormat, Phase, Traits, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import PrunedPair, PrunedPairs
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["SoRA", "shrunk"]

_SHRINKAGE = 0.385  # 30 % of N(0, 1) lie within this of 0
_THRESHOLD = 3e-4  # of the authors' scripts
Map = Callable[[float], float]
_SCALES: dict[str, tuple[Map, Map]] = {
    "linear": (float, float),
    "log": (math.exp, math.log),
    "exp": (math.log, math.exp),
}


def shrunk(gate: Tensor, threshold: float, *, reference: bool = False) -> Tensor:
    """The proximal step of ξ·‖g‖₁: sign(g)·max(|g| − ξ, 0), elementwise.

    With `reference`, as the authors' code has it: what is left below ξ after shrinking is zeroed too, so that
    everything under 2ξ goes.
    """
    left = nn.functional.softshrink(gate, threshold)
    return left.masked_fill(left.abs() < threshold, 0.0) if reference else left


class GatedPair(PrunedPair):
    """x ↦ B·(g ⊙ A·dropout(x)) with g (rank) from N(0, 1); the deployed form has g's non-zeros in A."""

    gate: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int, *, dropout: float) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        self.gate = nn.Parameter(torch.randn(rank))

    def down(self) -> Tensor:
        """diag(g)·A, (rank × in)."""
        return self.A if self.gate is None else self.gate[:, None] * self.A

    @property
    def rank(self) -> int:
        return len(self.A) if self.gate is None else int(self.gate.count_nonzero())

    def deploy(self) -> None:
        """Fold the gate into A and drop its zeros."""
        if self.gate is not None:
            acts = self.gate != 0
            self.hold(self.down()[acts], self.B[:, acts])
            self.gate = None


class SoRAModule(PrunedPairs[GatedPair]):
    """A gated pair for each site; δ = s·B·(g ⊙ A·dropout(x)) with s = α/r, or 1 behind another gate.

    Attributes:
        threshold: ξ at present; `None` where all steps share the config's `shrinkage`.
    """

    def __init__(self, children: dict[str, GatedPair], config: SoRA.Config) -> None:
        super().__init__(children, config.scale, config.rank)
        self.config = config
        self.threshold = config.threshold

    def gates(self) -> list[nn.Parameter]:
        """The gates of all sites; none once deployed."""
        return [pair.gate for pair in self.children_by_site() if pair.gate is not None]

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """λ times the mean of |g| over all gates."""
        gates: list[Tensor] = [*self.gates()]
        return self.config.penalty * torch.cat(gates).abs().mean() if gates and self.config.penalty else None

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        threshold = self.config.share_of(total) if self.threshold is None else self.threshold
        for gate in self.gates():
            gate.copy_(shrunk(gate, threshold, reference=self.config.reference_threshold))

    def settled(self, step: int, total: int) -> bool:
        """At the end where all steps share the shrinkage, of which earlier states have had a part alone."""
        return step >= total or not (self.config.shrinkage and self.gates())

    def parts(self) -> dict[str, list[nn.Parameter]]:
        pairs = self.children_by_site()
        return {"down": [pair.A for pair in pairs], "up": self.up_parameters(), "gates": self.gates()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The factors, and the gates without weight decay."""
        gates = self.gates()
        ids = {id(g) for g in gates}
        factors = [p for p in self.parameters() if id(p) not in ids]
        groups: list[dict[str, Any]] = [{"params": factors}]
        return [*groups, {"name": "gates", "params": gates, "weight_decay": 0.0}] if gates else groups


class ScheduledSoRAModule(SoRAModule):
    """Trains in stages, each from where the one before ended and with a higher threshold."""

    def phases(self) -> list[Phase]:
        """One for each threshold; the output of each is `ranks()`."""
        return [
            Phase(f"threshold-{i}", begin=partial(setattr, self, "threshold", threshold), output=self.ranks)
            for i, threshold in enumerate(self.config.thresholds(), start=1)
        ]


@register("sora")
class SoRA(LowRankMethod):
    """y = W₀x + b₀ + s·B·(g ⊙ A·dropout(x)), s = α/r; after every step g ← sign(g)·max(|g| − ξ, 0).

    Ding et al. 2023, arXiv:2311.11696. g (r) has a parameter group of its own without weight decay, and the
    loss gets λ·mean|g|, both as in the authors' code (where g has a schedule of its own as well). ξ does not
    follow the learning rate (there neither; their second version multiplies the two). A gate that is zero
    stays so until a step of the optimizer moves it by more than ξ. A is Kaiming-uniform (a = √5), B zero, g
    from N(0, 1): the identity at init. That the authors train the LayerNorms as well is left to the recipe.

    How much goes out depends on Σξ. `shrinkage` is that sum: each of n steps has ξ = shrinkage / n, so that
    short and long trainings prune alike, and with `patience` the last state alone counts. Its default takes
    30 % of the gates where the loss has no say: the paper keeps 70 % of the parameters (abstract).
    `threshold` is ξ itself, as in the authors' script: 3e-4, which comes to Σξ = 4.3 over their 14,380 steps
    (STS-B, 20 epochs of batches of 8). All of 4.3 in a few hundred steps leaves no gate, since no optimizer
    moves them that far.

    `stages` K > 1 is the paper's schedule: K trainings of equal length, each from the weights of the one
    before, with ξ rising from `threshold` to `final_threshold`; such a training cannot pause. Another gate in
    front takes the place of s. Mergeable. Trained: r·(in + out + 1) for each site; deployed, with g folded
    into A: nnz(g)·(in + out), which depends on the data: a budget counts r·(in + out).
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

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.stages > 1:
            self.traits = replace(self.traits, phased=True)

    part_names = ("down", "up", "gates")
    peft = PeftFormat("lora")

    class Config(LowRankConfig):
        rank: int = Field(default=8, ge=1, le=1024, description="r, the largest rank")
        shrinkage: float | None = Field(
            default=_SHRINKAGE, ge=0, le=100, description="Σξ over all steps of the training"
        )
        threshold: float | None = Field(
            default=None, ge=0, le=1, description="ξ of each step, in place of shrinkage; of the first stage"
        )
        penalty: float = Field(default=0.1, ge=0, le=1000, description="λ")
        reference_threshold: bool = Field(
            default=False, description="zero gates below 2ξ, as the authors' code"
        )
        stages: int = Field(default=1, ge=1, le=64, description="K, trainings one after the other")
        final_threshold: float | None = Field(default=None, gt=0, le=1, description="ξ of the last stage")
        schedule: Literal["linear", "log", "exp"] = Field(default="linear", description="how ξ rises")

        @model_validator(mode="after")
        def _what_is_given_takes_the_place_of_the_default(self) -> SoRA.Config:
            # By a validator `before`, strict fields would be given lists where they want tuples.
            if self.threshold is None and (self.stages > 1 or self.final_threshold is not None):
                self.__dict__["threshold"] = _THRESHOLD
            if self.threshold is not None and "shrinkage" not in self.model_fields_set:
                self.__dict__["shrinkage"] = None
            return self

        @model_validator(mode="after")
        def _rises(self) -> SoRA.Config:
            if (self.threshold is None) == (self.shrinkage is None):
                raise ValueError(
                    "either shrinkage says Σξ or threshold (with stages) says ξ, not both; 0 prunes nothing"
                )
            if (self.stages > 1) != (self.final_threshold is not None):
                raise ValueError("stages above 1 and final_threshold go together")
            first = self.threshold or 0.0
            if self.final_threshold is not None and self.final_threshold < first:
                raise ValueError(f"final_threshold is below threshold={first}")
            if self.stages > 1 and self.schedule == "exp" and not first:
                raise ValueError("an exp schedule starts from a threshold above 0")
            return self

        def share_of(self, steps: int) -> float:
            """ξ of each of so many steps that share the shrinkage."""
            return (self.shrinkage or 0.0) / max(1, steps)

        def thresholds(self) -> list[float]:
            """ξ of each stage: equally spaced themselves, in their exp (`log`) or in their log (`exp`)."""
            first = self.threshold or 0.0
            if self.final_threshold is None:
                return [first]
            there, back = _SCALES[self.schedule]
            low, high = there(first), there(self.final_threshold)
            return [back(low + (high - low) * k / (self.stages - 1)) for k in range(self.stages)]

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        r = self.config.rank
        n = sum(r * (s.in_features + s.out_features) for s in sites)
        return ParameterCount(n, n + r * len(sites))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {s.key: GatedPair(s.in_features, s.out_features, c.rank, dropout=c.dropout) for s in sites}
        return SoRAModule(pairs, c) if c.stages == 1 else ScheduledSoRAModule(pairs, c)

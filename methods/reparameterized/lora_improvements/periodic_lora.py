"""PeriodicLoRA: LoRA that is unloaded and started again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import ParameterCount, PeftFormat, Phase, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import LowRankPair, ScaledPairs
from autopeft.spec import BackboneSpec, Site

__all__ = ["PeriodicLoRA"]


class PeriodicPair(LowRankPair):
    """x ↦ B·A·dropout(x) + Σₜ Bₜ·Aₜ·x: a live pair, and those that earlier stages have left.

    The latter are buffers `past_down` ((K − 1)·rank × in) and `past_up` (out × (K − 1)·rank), zero until
    their stage has ended. The deployed form is one pair of rank K·rank.
    """

    past_down: Tensor | None
    past_up: Tensor | None

    def __init__(self, in_features: int, out_features: int, rank: int, stages: int, dropout: float) -> None:
        super().__init__(in_features, out_features, rank, dropout=dropout)
        past = (stages - 1) * rank
        self.register_buffer("past_down", torch.zeros(past, in_features))
        self.register_buffer("past_up", torch.zeros(out_features, past))

    def forward(self, x: Tensor) -> Tensor:
        live = super().forward(x)
        if self.past_down is None or self.past_up is None:
            return live
        return live + nn.functional.linear(nn.functional.linear(x, self.past_down), self.past_up)

    def product(self) -> Tensor:
        """The sum of all pairs' B·A, (out × in)."""
        if self.past_down is None or self.past_up is None:
            return super().product()
        return super().product() + self.past_up @ self.past_down

    @property
    def begun(self) -> bool:
        """Whether an earlier training has left pairs here."""
        return self.past_down is None or bool(self.past_down.any())

    @torch.no_grad()
    def unload(self, stage: int, momentum: float) -> None:
        """Put (1 − μ)·B·A to the pairs that stay, as the `stage`-th (0-based), and start again from μ·B·A."""
        if self.past_down is None or self.past_up is None:
            return
        rank = len(self.A)
        place = slice(stage * rank, (stage + 1) * rank)
        self.past_down[place] = self.A
        self.past_up[:, place] = (1.0 - momentum) * self.B
        if momentum:
            self.B.mul_(momentum)
        else:
            self.reset()

    @torch.no_grad()
    def deploy(self) -> None:
        """Become one pair of rank K·rank."""
        if self.past_down is not None and self.past_up is not None:
            self.hold(torch.cat([self.past_down, self.A]), torch.cat([self.past_up, self.B], dim=1))
            self.past_down = self.past_up = None


class PeriodicLoRAModule(ScaledPairs[PeriodicPair]):
    """A pair for each site, which is unloaded between stages."""

    def __init__(self, children: dict[str, PeriodicPair], scale: float, config: PeriodicLoRA.Config) -> None:
        super().__init__(children, scale)
        self.config = config

    def deploy(self) -> None:
        """One LoRA of rank K·r at each site."""
        for pair in self.children_by_site():
            pair.deploy()


class StagedModule(PeriodicLoRAModule):
    """Trains in K stages, each with an optimizer and a schedule of its own."""

    def phases(self) -> list[Phase]:
        """One for each stage; after an earlier training, whose pairs fill all places, one that goes on."""
        if any(pair.begun for pair in self.children_by_site()):
            return [Phase("further")]
        return [self._stage(k) for k in range(self.config.stages)]

    def _stage(self, k: int) -> Phase:
        def unload() -> None:
            for pair in self.children_by_site():
                pair.unload(k - 1, self.config.momentum)

        return Phase(f"stage-{k + 1}", begin=unload if k else None)


@register("periodic_lora")
class PeriodicLoRA(LowRankMethod):
    """y = (W₀ + s·Σₜ Bₜ·Aₜ)x + b₀ + s·B·A·dropout(x), s = α/r; Bₜ·Aₜ is what stage t left when it ended.

    Meng et al. 2024, arXiv:2402.16141 (no official code). The training has K stages of equal length;
    optimizer and learning-rate schedule, its warm-up too, start anew with each, for all that is trained.
    Between two stages (1 − μ)·B·A moves to the sum and the live pair goes on from (A, μ·B), so that the
    function does not jump; with μ = 0 it goes on from LoRA's init. (The paper is said to mix the factors with
    a new init instead, which does jump.) The backbone stays as it is: the sum is kept as factors beside it.

    A is Kaiming-uniform (a = √5), B zero: the identity at init. Mergeable. `stages: 1` is LoRA. Behind a gate
    the gate takes the place of s. Such a training cannot pause. A second one goes on with the live pair alone
    (of a saved hybrid: with all of it, as one LoRA). Trained: r·(in + out) for each site;
    deployed: K·r·(in + out), a LoRA of rank K·r.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.stages > 1:
            self.traits = replace(self.traits, phased=True)

    @property
    def change_rank(self) -> int:
        return int(self.config.stages * self.config.rank)

    peft = PeftFormat("lora")

    class Config(LowRankConfig):
        rank: int = Field(default=8, ge=1, le=1024, description="r of one stage")
        dropout: float = Field(default=0.0, ge=0, lt=1, description="on the input of the live pair")
        stages: int = Field(default=4, ge=1, le=64, description="K")
        momentum: float = Field(default=0.0, ge=0, lt=1, description="μ, the share that stays live")

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.rank * (s.in_features + s.out_features) for s in sites)
        return ParameterCount(self.config.stages * n, n)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {
            s.key: PeriodicPair(s.in_features, s.out_features, c.rank, c.stages, c.dropout) for s in sites
        }
        return (StagedModule if c.stages > 1 else PeriodicLoRAModule)(pairs, c.scale, c)

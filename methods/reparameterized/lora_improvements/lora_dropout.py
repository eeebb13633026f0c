"""LoRA Dropout: random input and output features of LoRA's change are left out while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.method import Call, Linear, LossStep, Narrow, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import LowRankPair, ScaledPairs, generator_of
from autopeft.spec import BackboneSpec, Site

__all__ = ["LoRADropout"]


class LoRADropoutModule(ScaledPairs[LowRankPair]):
    """A low-rank pair for each site; δ = s·m_B ⊙ B·A·(m_A ⊙ x) while training and as one of the ensemble.

    Else δ = s·f·B·A·x with f = (1 − p)² where `expected`, else 1. Masks while training are drawn from torch's
    global generator at each call of a site, so that recomputation under checkpointing draws them again.
    """

    def __init__(self, children: dict[str, LowRankPair], scale: float, config: LoRADropout.Config) -> None:
        super().__init__(children, scale)
        self.dropout = config.dropout
        self.expected = config.expected
        # Without dropout all members are one and the same.
        self.members, self.seed = (config.ensemble if config.dropout else 0), config.seed
        self._member: int | None = None

    def choose(self, member: int | None) -> None:
        """Act, in eval mode, with the masks of one member of the ensemble; `None`: without masks."""
        self._member = member

    def masks(self, site: Site, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """What is kept of the site's features, m_A (in) and m_B (out), both bool; `None`: all of them."""
        if not self.dropout:
            return None
        generator, place = None, device
        if not self.training:
            if self._member is None:
                return None
            # The same masks for the whole test set and on every device.
            generator, place = generator_of(self.seed, site.path, self._member), torch.device("cpu")
        kept = torch.rand(site.in_features + site.out_features, generator=generator, device=place)
        m_a, m_b = (kept >= self.dropout).to(device).split([site.in_features, site.out_features])
        return m_a, m_b

    def _full(self) -> float:
        """The factor f of the unmasked change."""
        return (1 - self.dropout) ** 2 if self.expected else 1.0

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        masks = self.masks(site, x.device)
        pair: Tensor = self[site](x if masks is None else x * masks[0])
        pair = pair * self._full() if masks is None else pair * masks[1]
        return pair if call.gated else pair * self.scale

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """The pair as it is evaluated (see `ScaledPairs`)."""
        down, up, scale = super().as_lora(site)
        return down, up, scale * self._full()

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self._full() * self[site].product(), bias


class SeveralDraws(LoRADropoutModule):
    """Its step has `draws` forwards, each with masks of its own."""

    def __init__(self, children: dict[str, LowRankPair], scale: float, config: LoRADropout.Config) -> None:
        super().__init__(children, scale, config)
        self.draws = config.draws

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """Nothing of its own: the task's loss becomes the mean over the draws."""
        if self.training:
            step.average(self.draws)
        return None


@register("lora_dropout")
class LoRADropout(LowRankMethod):
    """y = W₀x + b₀ + s·diag(m_B)·B·A·diag(m_A)·x, s = α/r; each entry of m_A (in) and m_B (out) is 0 with
    probability p.

    Lin et al. 2024, arXiv:2404.09610. The masks are drawn once for each site and forward pass and hold for
    all its tokens and rows, so that a (1 − p)² share of the entries of ΔW acts. The rank is never dropped,
    and nothing is rescaled by 1/(1 − p), as in the paper's formulas (§3.2, read in a translation; no code was
    found). A is Kaiming-uniform (a = √5), B zero: the identity at init. The paper averages the loss of N
    draws in a step (§3.3), as `draws` does; N was not found, and each takes a forward and a backward.
    Micro-batches have draws of their own, and several entries share the forwards of the largest `draws`.
    AdaLoRA as a host is not built.

    Predictions and scores are the mean of the output distributions of `ensemble` masked models, as the
    paper's are of N (§3.4; 4 is this project's), whose masks come from `seed`, so that they are the same each
    time. That takes N forward passes (see `autopeft.hybrid.predictive`). A bare forward and `generate` are
    one model without masks, and so is everything with `ensemble: 0`: ΔW is then (1 − p)² of itself, its mean
    under the masks, or all of itself with `expected: false`, which is four times at p = 0.5 what was trained.
    Behind a gate the gate takes the place of s. Mergeable, and exported to peft, with `ensemble: 0` alone.
    r·(in + out) parameters for each site.
    """

    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"rank": LowRankPair.by_rank}
    linear_in: ClassVar[Linear] = LowRankPair.linear_in

    class Config(LowRankConfig):
        dropout: float = Field(default=0.5, ge=0, lt=1, description="p")
        expected: bool = Field(
            default=True, description="without masks, evaluate and merge with (1 − p)²·ΔW, else with ΔW"
        )
        draws: int = Field(
            default=1, ge=1, le=64, description="masked forwards of a step, whose losses are averaged"
        )
        ensemble: int = Field(default=4, ge=0, le=64, description="N masked models at test time; 0: none")
        seed: int = Field(default=0, ge=0, lt=2**32, description="where the ensemble's masks are drawn from")

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.ensemble and config.dropout:
            self.traits = replace(self.traits, mergeable=False)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {s.key: LowRankPair(s.in_features, s.out_features, c.rank) for s in sites}
        several = c.dropout > 0 and c.draws > 1  # without masks all draws are alike
        return (SeveralDraws if several else LoRADropoutModule)(pairs, c.scale, c)

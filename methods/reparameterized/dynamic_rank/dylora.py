"""DyLoRA: one training for all ranks up to the largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Call, Narrow, ParameterCount, PeftFormat, register
from autopeft.method.low_rank import LowRankConfig, LowRankMethod
from autopeft.nn import NestedPair, PerSite, down_and_up
from autopeft.spec import BackboneSpec, Site

__all__ = ["DyLoRA"]


class DyLoRAModule(PerSite[NestedPair]):
    """Nested pairs for each site, all at one rank at a time.

    Attributes:
        rank: the rank in use outside of training steps: of evaluation, merging and `deploy()`; see `use`.
        drawn: the rank that this step trains, `None` between steps.
    """

    def __init__(self, children: dict[str, NestedPair], config: DyLoRA.Config) -> None:
        super().__init__(children)
        self.config = config
        self.rank = config.rank if config.deployed_rank is None else config.deployed_rank
        self.largest = config.rank
        self.drawn: int | None = None
        self.whole = False

    def use(self, rank: int) -> None:
        """From now on evaluate, merge and deploy at `rank`: any rank is there after the one training.

        Raises:
            MethodError: there is no such rank.
        """
        if not 1 <= rank <= self.largest:
            raise MethodError(f"This DyLoRA holds the ranks 1 to {self.largest}, but got {rank=}.")
        self.rank = rank

    def scale(self, rank: int, *, gated: bool = False) -> float:
        """α/b; a gate takes the place of α/R and leaves R/b."""
        return (self.config.rank if gated else self.config.scale * self.config.rank) / rank

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        drawn = self.drawn if self.training else None
        rank = self.rank if drawn is None else drawn
        pair: Tensor = self[site](x, rank, only_last=drawn is not None and self.config.frozen)
        return pair * self.scale(rank, gated=call.gated)

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        a, b = self[site].factors(self.rank)
        return weight + self.scale(self.rank) * (b @ a), bias

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """The pair of the rank in use (see `ScaledPairs`)."""
        return *self[site].factors(self.rank), self.scale(self.rank)

    def before_step(self, step: int, total: int) -> None:
        if not self.whole:
            self.drawn = 1 + int(torch.multinomial(self.config.chances(), 1))

    def after_step(self, step: int, total: int) -> None:
        self.drawn = None

    def parts(self) -> dict[str, list[nn.Parameter]]:
        return down_and_up(self, self.up_parameters())

    def up_parameters(self) -> list[nn.Parameter]:
        return [p for pair in self.children_by_site() for n, p in pair.named_parameters() if n[0] == "B"]

    def deploy(self) -> None:
        """Keep the first `rank` rows of each A and columns of each B: a LoRA of that rank."""
        for pair in self.children_by_site():
            pair.hold(*pair.factors(self.rank))
        self.largest, self.whole = self.rank, True

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        rank = max(1, min(self.config.rank, *(shapes[f"at.{key}.A"][0] for key in self.at)))
        for pair in self.children_by_site():
            a, b = pair.factors(1)
            pair.hold(a.new_zeros(rank, a.shape[1]), b.new_zeros(b.shape[0], rank))
        self.rank = self.largest = rank


@register("dylora")
class DyLoRA(LowRankMethod):
    """y = W₀x + b₀ + (α/b)·B[:, :b]·A[:b]·dropout(x), b drawn from 1…R before each step, once for all sites
    of the entry.

    Valipour et al. 2023, arXiv:2210.07558. `frozen` (the default, as in the authors' code): a step trains row
    b of A (R × in) and column b of B (out × R) alone, and the first b − 1 take part as constants; else it
    trains the first b. What a step does not train stays bitwise as it is (as the paper has it; in the
    authors' code Adam's momentum and weight decay go on). `sampling`: `uniform`, as in their code, or
    `geometric`, P(b) ∝ (1 − p)^(b−1), which is in no file of theirs: p is this project's. A is
    Kaiming-uniform (a = √5), B zero: the identity at init.

    Evaluation, merging and deployment use `deployed_rank`, R by default; the module's `use(b)` reads out any
    other rank afterwards, which is saved and loaded as such. Behind a gate the gate takes the place of α/R,
    and R/b remains. Mergeable. Trained: R·(in + out) for each site; deployed: b·(in + out).
    """

    traits = replace(LowRankMethod.traits, data_dependent=True)
    peft = PeftFormat("lora")
    narrow: ClassVar[Narrow] = {"rank": {"A": (0,), "B": (1,)}}

    class Config(LowRankConfig):
        rank: int = Field(default=8, ge=1, le=256, description="R, the largest rank")
        deployed_rank: int | None = Field(default=None, ge=1, le=256, description="b; default R")
        frozen: bool = Field(default=True, description="train only the last of the drawn rows and columns")
        sampling: Literal["uniform", "geometric"] = "uniform"
        p: float = Field(default=0.15, gt=0, lt=1, description="of the geometric distribution")

        @model_validator(mode="after")
        def _is_held(self) -> DyLoRA.Config:
            if self.deployed_rank is not None and self.deployed_rank > self.rank:
                raise ValueError(f"deployed_rank={self.deployed_rank} is above rank={self.rank}")
            return self

        def chances(self) -> Tensor:
            """Weights (R,) of the ranks 1…R."""
            keep = 1.0 if self.sampling == "uniform" else 1 - self.p
            return keep ** torch.arange(self.rank, dtype=torch.float64)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        c = self.config
        features = sum(s.in_features + s.out_features for s in sites)
        return ParameterCount((c.deployed_rank or c.rank) * features, c.rank * features)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        c = self.config
        pairs = {s.key: NestedPair(s.in_features, s.out_features, c.rank, dropout=c.dropout) for s in sites}
        return DyLoRAModule(pairs, c)

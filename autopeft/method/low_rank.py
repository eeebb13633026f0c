"""What LoRA and its relatives have in common as methods: sites, config, scale and count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from autopeft.method.contract import MethodConfig, ParameterCount, Traits
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site

__all__ = ["LowRankConfig", "LowRankMethod"]


class LowRankConfig(MethodConfig):
    """Rank r, α and dropout; s = α/r, 1 where α is `rank`, and 2 where it is left out."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: Annotated[float, Field(gt=0, le=4096)] | Literal["rank"] | None = Field(
        default=None, description="α, or `rank` for α = r; default 2·rank"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def scale(self) -> float:
        if self.alpha == "rank":
            return 1.0
        return 2.0 if self.alpha is None else self.alpha / self.rank


class LowRankMethod:
    """Base of methods of rank r beside linear maps; r·(in + out) parameters where they say nothing else."""

    traits = Traits(
        ways=frozenset({"hook"}),
        sites=LINEAR_SITES,
        default_sites=("q", "v"),
        mergeable=True,
        stochastic=True,
        rowwise=True,
    )
    size_field: ClassVar[str] = "rank"
    part_names: ClassVar[tuple[str, ...]] = ("down", "up")

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def change_rank(self) -> int | None:
        """The largest rank of what it adds to a map's weight."""
        return int(self.config.rank)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        n = sum(self.config.rank * (s.in_features + s.out_features) for s in sites)
        return ParameterCount(n, n)

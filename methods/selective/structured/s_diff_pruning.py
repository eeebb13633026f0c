"""Diff pruning in groups: a gate of each tensor besides those of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from autopeft.method import Interim, ParameterCount, Traits, register
from autopeft.nn import DiffPruningConfig, GatedEntries
from autopeft.spec import BackboneSpec, Site

__all__ = ["SDiffPruning"]


@register("s_diff_pruning")
class SDiffPruning:
    """θ = θ₀ + z·z_g·w while it searches, z_g a hard-concrete gate for each tensor; then as `u_diff_pruning`.

    Guo et al. 2021, arXiv:2012.07463, as the authors' code has it by default: the groups are the tensors of
    the base model, each weight, bias and norm one. The location of a tensor's gate starts and trains as those
    of the entries do. The penalty is λ·(Σ P(z > 0) + Σ P(z_g > 0)), over entries and over tensors; with
    `joint: product` it is λ·Σ P(z > 0)·P(z_g > 0), how many entries are expected to differ. The
    k entries with the largest |z·z_g·w| are chosen, so that groups have a say in where these are, and what is
    kept is single entries all the same. All else is as `u_diff_pruning` says.

    Mergeable. k parameters (and k indices, which are storage). What the search needs is not counted: w and a
    in fp32 for each entry of the base model, a for each tensor, their gradients and optimizer state, all of
    which are freed when the entries are chosen. Such a training cannot pause.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        level="model",
        mergeable=True,
        stochastic=True,
        gateable=False,
        phased=True,
    )
    size_field: ClassVar[str] = "keep"

    class Config(DiffPruningConfig):
        joint: Literal["sum", "product"] = Field(
            default="sum", description="penalise both gates apart, or that both are open"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self.config.count("s_diff_pruning", spec.tensors, spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """The search trains w and a of every entry, and a of every tensor."""
        return Interim(trained=2 * sum(t.size for t in spec.tensors) + len(spec.tensors))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        k = self.config.count("s_diff_pruning", spec.tensors, spec)
        return GatedEntries(spec.tensors, k, self.config, grouped=True, joint=self.config.joint)

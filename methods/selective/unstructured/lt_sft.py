"""LT-SFT: sparse fine-tuning of the entries that full fine-tuning moves most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Interim, LossStep, ParameterCount, Phase, Traits, register
from autopeft.nn import SearchConfig, SearchedEntries
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["LTSFT"]


class LTSFTModule(SearchedEntries):
    """Full fine-tuning by dense deltas, then values at the entries that moved most, T times."""

    def __init__(self, tensors: Sequence[TensorSpec], k: int, config: LTSFT.Config, entries: int) -> None:
        super().__init__(tensors, k, config.search, rewinds=True)
        self.config, self._all = config, entries

    def phases(self) -> list[Phase]:
        """`full` and `sparse`, or `full-1`, `sparse-1`, `full-2` … of several iterations."""
        if not self.entries.missing:
            return [Phase("train")]
        times = self.config.iterations
        marks = [f"-{i + 1}" for i in range(times)] if times > 1 else [""]
        each, phases = self.entries.missing // times, list[Phase]()
        for mark in marks:
            n = None if mark == marks[-1] else each
            phases += [
                Phase(f"full{mark}", self.share / times, begin=self.begin_search),
                Phase(
                    f"sparse{mark}",
                    (1 - self.share) / times,
                    anew=f"full{mark}",
                    begin=partial(self.end_search, n),
                ),
            ]
        return phases

    def loss_terms(self, step: LossStep) -> Tensor | None:
        """λ/N·Σ|θ − θ₀|, with λ of the phase and N the entries of the whole base model."""
        if self.dense is None:
            weight, moved = self.config.l1_sparse, [self.entries.values.abs().sum()]
        else:
            weight, moved = self.config.l1_full, [delta.abs().sum() for delta in self.dense.parameters()]
        return weight / self._all * torch.stack(moved).sum() if weight else None


@register("lt_sft")
class LTSFT:
    """θ = θ₀ + scatter(idx, v), idx the k entries with the largest |θ₁ − θ₀| after full fine-tuning to θ₁.

    Ansell et al. 2022, arXiv:2110.07560 (the lottery-ticket sparse fine-tuning). The share `search` of the
    steps fine-tunes every tensor of the base model, embeddings included (`norms: frozen` leaves the norms
    out). The k entries that it moved most, of all tensors together, are chosen; then all that the recipe
    trains, the head and its other methods too, returns to its first values, and the other steps train v (k)
    from zero with a new optimizer and schedule. `iterations` T > 1 does this T times: each adds k/T entries
    to those chosen, and goes on from where the one before has ended.

    `l1_full` and `l1_sparse` add λ/N·Σ|θ − θ₀| to the loss of either phase, N all entries of the base model;
    the authors' sum has the head in it too. Of equal changes the first entries are chosen, so that there are
    exactly k, which their threshold does not ensure, and no small difference is dropped when v is saved
    (there, below 1e-7). `keep` is k, or a share of the whole base model (there, of what may be chosen).
    Several on one backbone add, whatever the order, and one that is taken off leaves the others as they are.

    Mergeable. k parameters (and k indices, which are storage). What full fine-tuning needs meanwhile is not
    counted: one value in fp32 for each entry of the base model, its gradient and its optimizer state, all of
    which are freed when the entries are chosen. Such a training cannot pause. A training that is stopped
    before leaves the largest changes as they are.
    """

    traits = Traits(ways=frozenset({"weight"}), level="model", mergeable=True, gateable=False, phased=True)
    size_field: ClassVar[str] = "keep"

    class Config(SearchConfig):
        keep: int | str = Field(default="1%", description="a share such as '0.1%' or a count such as '30k'")
        norms: Literal["frozen", "trained"] = Field(
            default="trained", description="whether the norms' entries are among those to choose from"
        )
        l1_full: float = Field(default=0.0, ge=0, le=1000, description="λ of full fine-tuning")
        l1_sparse: float = Field(default=0.0, ge=0, le=1000, description="λ of sparse fine-tuning")
        iterations: int = Field(default=1, ge=1, le=64, description="T, each of which adds k/T entries")

    def __init__(self, config: Config) -> None:
        self.config = config

    def _tensors(self, spec: BackboneSpec) -> list[TensorSpec]:
        norms = self.config.norms == "trained"
        return [t for t in spec.tensors if norms or t.role not in ("norm_weight", "norm_bias")]

    def _k(self, spec: BackboneSpec) -> int:
        k, times = self.config.count("lt_sft", self._tensors(spec), spec), self.config.iterations
        if k < times:
            raise MethodError(
                f"lt_sft with keep={self.config.keep!r} keeps {k:,} entries of {spec.family!r}, which "
                f"iterations={times} cannot share out; keep more, or set fewer iterations."
            )
        return k

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self._k(spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Full fine-tuning trains every entry that there is to choose from."""
        return Interim(trained=sum(t.size for t in self._tensors(spec)))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return LTSFTModule(self._tensors(spec), self._k(spec), self.config, spec.parameters)

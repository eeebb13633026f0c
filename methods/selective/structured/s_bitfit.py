"""S-BitFit: the bias tensors that matter most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import Interim, ParameterCount, Traits, register
from autopeft.nn import BiasSearchConfig, SearchedBiases
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["SBitFit"]


class SBitFitModule(SearchedBiases):
    """Values of the chosen bias tensors, at most k together."""

    def __init__(self, tensors: Sequence[TensorSpec], k: int, config: SBitFit.Config) -> None:
        super().__init__(tensors, k, config)
        self._rank_by = config.rank_by

    def best(self, n: int) -> Tensor:
        """Every position of the best tensors that fit into `n`; one that does not is passed over."""
        ranked: list[tuple[float, TensorSpec]] = []
        for tensor in self.entries.tensors:
            score = float(self.scores(tensor.name).double().sum())
            ranked.append((score / tensor.size if self._rank_by == "mean" else score, tensor))
        chosen: list[Tensor] = []
        for _, tensor in sorted(ranked, key=lambda pair: -pair[0]):  # stable: of equal ones the first
            if tensor.size <= n:
                n -= tensor.size
                chosen.append(torch.arange(*self.entries.offsets[tensor.name]))
        return torch.cat(chosen)

    def _choose(self, n: int | None, start: Callable[[str], Tensor | None]) -> None:
        super()._choose(n, start)
        self.entries.trim()

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold as many values as were saved, if those are no more than the budget."""
        values, index = shapes["entries.values"], shapes["entries.index"]
        if values == index and values[0] <= len(self.entries.values):
            self.entries.hold(values[0])


@register("s_bitfit")
class SBitFit:
    """b_g = b₀ + s_g·v_g: BitFit on the bias tensors g that a search over all of them finds, s_g 0 or 1.

    Lawton et al. 2023, arXiv:2305.16597 (no official code). It searches as `u_bitfit` does, and then ranks
    whole bias tensors by the sum of their entries' scores, or, with `rank_by: mean`, by their mean. In this
    order tensors are chosen as long as they fit into k entries; one that does not is passed over. `keep` is
    k, the budget, or a share of all biases: with all of them it trains as `bitfit` does. What is an option or
    a choice of this project stands at `u_bitfit`; how tensors fill a budget is one too. Backbones without
    biases (Llama, T5) are refused, as is a budget that no tensor fits into.

    Mergeable. The entries of the chosen tensors, at most k, which depends on the data: a budget counts k. The
    search trains all biases, which are not counted. Such a training cannot pause. One that is stopped before
    leaves the tensors that had the best scores so far.
    """

    traits = Traits(
        ways=frozenset({"weight"}),
        level="model",
        mergeable=True,
        gateable=False,
        phased=True,
        data_dependent=True,
    )
    size_field: ClassVar[str] = "keep"

    class Config(BiasSearchConfig):
        rank_by: Literal["sum", "mean"] = Field(
            default="sum", description="of a tensor's scores, by which tensors are ranked"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _budget(self, spec: BackboneSpec) -> int:
        k, sizes = self.config.budget("s_bitfit", spec), [t.size for t in self._biases(spec)]
        if min(sizes) > k:
            raise MethodError(
                f"s_bitfit with keep={self.config.keep!r} has room for {k:,} entries, and the smallest bias "
                f"of {spec.family!r} has {min(sizes):,}; keep at least as many, or use u_bitfit."
            )
        return k

    def _biases(self, spec: BackboneSpec) -> list[TensorSpec]:
        return self.config.biases("s_bitfit", spec)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self._budget(spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        return self.config.interim("s_bitfit", spec)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        return SBitFitModule(self._biases(spec), self._budget(spec), self.config)

"""PaFi: train the entries of smallest pretrained magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.method import ParameterCount, Traits, WeightTarget, register
from autopeft.nn import ChosenEntries, KeepConfig, TopEntries
from autopeft.spec import BackboneSpec, Site, TensorSpec

__all__ = ["PaFi"]


class PaFiModule(ChosenEntries):
    """Values at the entries of smallest magnitude, chosen when it is attached.

    Args:
        sizes: entries to choose in each tensor; `None` chooses the k smallest of all.
    """

    def __init__(self, tensors: Sequence[TensorSpec], k: int, sizes: Sequence[int] | None) -> None:
        super().__init__(tensors, k)
        self._sizes, self._seen = sizes, 0
        self._best = [TopEntries(k)] if sizes is None else [TopEntries(size) for size in sizes]

    def initialise(self, target: WeightTarget, weight: Tensor) -> None:
        """Look at a pretrained tensor; with the last of them the mask is there."""
        number, offsets = self._seen, self.entries.offsets
        self._best[0 if self._sizes is None else number].show(-weight.abs())
        self._seen += 1
        if self._seen == len(self.entries.tensors):
            starts = [0] if self._sizes is None else [start for start, _ in offsets.values()]
            found = [best.positions + start for best, start in zip(self._best, starts, strict=True)]
            self.entries.select(torch.cat(found).to(self.entries.index.device))
            self._best, self._seen = [], 0


@register("pafi")
class PaFi:
    """θ = θ₀ + scatter(idx, v), idx the k entries of smallest |θ₀|, v (k) zero at init.

    Liao et al. 2023, arXiv:2305.16742. The mask needs no data: it is one for the backbone, whatever the task
    and the seed, so that tasks share its indices. That, and that the magnitude of the pretrained entries
    alone decides, is in the paper's abstract. Its sections on the mask were not found, and the authors'
    repository (BaohaoLiao/pafi_hiwi) holds no code. A port by others (`pafi.py` of
    Aradhye2002/selective-peft-toolkit) ranks all entries together, as `scope: global` does, and those of all
    parameters that it is given, norms and embeddings too. Here weights and biases of the transformer's layers
    are ranked, and norms, embeddings and the pooler stay frozen. `scope: per_tensor` keeps the same share of
    each tensor instead of the smallest of all. `keep` is k, or a share of the base model. Of equal magnitudes
    the first ones are taken.

    Mergeable. k parameters (and k indices, which are storage).
    """

    traits = Traits(ways=frozenset({"weight"}), level="model", mergeable=True, gateable=False)
    size_field: ClassVar[str] = "keep"

    class Config(KeepConfig):
        scope: Literal["global", "per_tensor"] = Field(
            default="global", description="rank all entries together, or those of each tensor"
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def _tensors(self, spec: BackboneSpec) -> list[TensorSpec]:
        found = [t for t in spec.tensors if t.role in ("weight", "bias") and t.layer is not None]
        if not found:
            raise MethodError(f"pafi finds no weights in the layers of {spec.family!r}; use fish_mask.")
        return found

    def _sizes(self, spec: BackboneSpec) -> list[int]:
        """Entries of each tensor where each keeps the same share, rounded down."""
        tensors = self._tensors(spec)
        k, entries = self.config.count("pafi", tensors, spec), sum(t.size for t in tensors)
        return [k * t.size // entries for t in tensors]

    def _k(self, spec: BackboneSpec) -> int:
        if self.config.scope == "global":
            return self.config.count("pafi", self._tensors(spec), spec)
        k = sum(self._sizes(spec))
        if not k:
            raise MethodError(
                f"pafi with keep={self.config.keep!r} keeps less than one entry of each tensor."
            )
        return k

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self._k(spec)
        return ParameterCount(k, k)

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        sizes = self._sizes(spec) if self.config.scope == "per_tensor" else None
        return PaFiModule(self._tensors(spec), self._k(spec), sizes)

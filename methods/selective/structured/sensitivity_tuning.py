"""SPT: tune single entries where few are sensitive, and whole modules where many are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError, MethodError, UsageError
from autopeft.method import Calibration, Explicit, Interim, Objective, ParameterCount, Traits, register
from autopeft.nn import (
    Bottleneck,
    KeepConfig,
    SettledAdapter,
    SettledPair,
    SettledStructure,
    Whole,
    batch_gradients,
    leading_entries,
)
from autopeft.spec import LINEAR_SITES, BackboneSpec, Site, TensorSpec

__all__ = ["SensitivityTuning"]

_VECTORS = ("bias", "norm_weight", "norm_bias")


class SensitivityTuningModule(SettledStructure):
    """A structure that the squares of gradients settle."""

    def __init__(self, config: SensitivityTuning.Config, *parts: Any) -> None:
        super().__init__(*parts)
        self.config = config

    @property
    def calibration(self) -> Calibration:
        return Calibration(rows=self.config.batch_size, training=True)

    def measurement(self) -> dict[str, Any]:
        """All but the budget, so that those of all sizes share one ranking."""
        named = self.config.model_dump(include={"batches", "rank", "module", "alpha", "beta"})
        return {**named, "tensors": [t.name for t in self.tensors]}

    def measure(
        self, base: nn.Module, batches: Iterable[dict[str, Tensor]], objective: Objective
    ) -> dict[str, Tensor]:
        """Rank the entries by Σ g², as far as any budget can depend on it."""
        named = dict(base.named_parameters())
        parameters = [named[t.name] for t in self.tensors]
        parts = islice(batches, self.config.batches)
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        for gradients in batch_gradients(parameters, parts, objective, "sensitivity_tuning"):
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient.square())
            del gradient, gradients  # before the next ones are made
        try:
            positions, numbers = leading_entries(sums, list(self.tensors.values()))
        except ValueError as error:
            raise AutoPEFTError(
                "sensitivity_tuning got gradients that are not finite; calibrate in fp32 and check the "
                "training data."
            ) from error
        return {"positions": positions, "numbers": numbers}

    def settle(self, measured: Mapping[str, Tensor]) -> None:
        """Spend the budget; everything starts anew."""
        self.spend(measured["positions"], measured["numbers"])

    def explicit(self, sites: Sequence[Site]) -> Explicit:
        if self.config.module == "adapter":
            raise UsageError(
                "Adapters behind single maps have no method of their own, so that no recipe can say them; "
                "settle it with `module: lora`."
            )
        return super().explicit(sites)


@register("sensitivity_tuning")
class SensitivityTuning:
    """s = Σ g² over batches at θ₀ ranks all entries; of the first τ a matrix with c gets a LoRA or c values.

    He et al. 2023, arXiv:2303.08566 (SPT). g is the gradient of a batch's mean loss in training mode, the
    backbone's dropout included, with the fresh head; there are `batches` of `batch_size`, or those of one
    pass. Ranked are the weights of linear maps in layers, their biases, and the gains and biases of norms,
    but for the norm of embeddings. Let c entries of a tensor be among the first τ. A matrix that has c ≥ P/α
    of them gets a module of P parameters and rank r instead: `module: lora`, B·A·x beside the map without a
    scale, P = r·(in + out); or `adapter`, behind it and fed by its output, with GELU and biases, P = 2·r·out
    + r + out. A vector with c ≥ dim/β is trained whole. Otherwise the c entries are: θ₀ + v. Class tokens
    (ViT) are trained in any case.

    A larger τ never costs less, so that the largest one is taken whose sum the budget `keep` suffices for. A
    fused map of a gated FFN (Phi-3), which is no site as a whole, gets a module for each of its parts, whose
    P are added. The authors try steps of 20,000 and take the nearest, which may be above it. Their budgets
    for ViT-B are 0.05 to 1.0 million, of 86 million. `keep` is a count, or a share of the base model. With
    `sites` the matrices, with their biases, are those at these maps alone.

    A (D) is Kaiming-uniform (a = √5), B (U, e) and v are zero: the identity at init. Modules have dropout at
    their input, but for attention's output projection, and drop whole rows with probability `drop_path`.
    Mergeable with `module: lora`. What is deployed depends on the data and is at most `keep`, which a budget
    counts. `autopeft export --as recipe` writes what was settled as a recipe, with which a search can begin.
    """

    traits = Traits(
        ways=frozenset({"hook", "weight"}), sites=LINEAR_SITES, default_sites=LINEAR_SITES, level="model",
        needs=frozenset({"calibration"}), mergeable=True, stochastic=True, gateable=False, rowwise=True,
        data_dependent=True,
    )  # fmt: skip
    size_field: ClassVar[str] = "keep"
    part_names: ClassVar[tuple[str, ...]] = ("down", "up", "entries")

    class Config(KeepConfig):
        module: Literal["lora", "adapter"] = Field(default="lora", description="what stands for many entries")
        rank: int = Field(default=8, ge=1, le=1024, description="r")
        alpha: float = Field(default=10.0, ge=1, le=1e6, description="α, for matrices")
        beta: float = Field(default=5.0, ge=1, le=1e6, description="β, for vectors")
        batches: int = Field(default=16, ge=1, le=100_000)
        batch_size: int = Field(default=32, ge=1, le=4096)
        dropout: float = Field(default=0.1, ge=0, lt=1, description="at the input of a module")
        drop_path: float = Field(default=0.1, ge=0, lt=1, description="of a module's whole output for a row")

    def __init__(self, config: Config) -> None:
        self.config = config
        if config.module == "adapter":
            self.traits = replace(self.traits, mergeable=False)

    def _matrices(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[TensorSpec, list[Site]]:
        """The ranked weights, each with its site, or where a fused one has none, with those of its parts.

        Raises:
            MethodError: of a fused weight a part is among `sites` without the others.
        """
        wanted, found = {(s.stack, s.layer, s.name): s for s in sites}, dict[TensorSpec, list[Site]]()
        for t in spec.tensors:
            if t.role != "weight":
                continue
            here = {name: wanted.get((t.stack, t.layer, name)) for name in {*t.maps, *t.parts}}  # type: ignore[arg-type]
            maps, parts = ([s for name in names if (s := here[name])] for names in (t.maps, t.parts))
            if (maps or parts) and len(maps) < len(t.maps):
                raise MethodError(
                    f"sensitivity_tuning ranks {t.name!r} as a whole, and its sites name only "
                    f"{' and '.join(s.name for s in maps or parts)} of it; name {' and '.join(t.maps)}."
                )
            if maps and t.size == sum(s.in_features * s.out_features for s in maps):
                found[t] = maps
        return found

    def _tensors(self, sites: Sequence[Site], spec: BackboneSpec) -> dict[TensorSpec, Whole]:
        c, matrices = self.config, self._matrices(sites, spec)
        maps = {(s.stack, s.layer, s.name) for own in matrices.values() for s in own}
        found = dict[TensorSpec, Whole]()
        for t in spec.tensors:
            if t in matrices:
                found[t] = Whole(sum(self._size(s) for s in matrices[t]), c.alpha)
            elif t.role in _VECTORS and t.site != "embeddings":
                norm = t.role != "bias"
                if norm or any((t.stack, t.layer, name) in maps for name in t.maps):
                    found[t] = Whole(t.size, c.beta)
        if not matrices:
            raise MethodError(
                f"sensitivity_tuning finds no weights of linear maps in {spec.family!r}; use fish_mask."
            )
        return found

    def _size(self, site: Site) -> int:
        r, out = self.config.rank, site.out_features
        if self.config.module == "adapter":
            return Bottleneck.size(out, r)
        return r * (site.in_features + out)

    @staticmethod
    def _fixed(spec: BackboneSpec) -> list[TensorSpec]:
        return [t for t in spec.tensors if t.name.rpartition(".")[2] == "cls_token"]

    def _budget(self, sites: Sequence[Site], spec: BackboneSpec) -> int:
        """Parameters at most: the budget, or what all of it together comes to.

        Raises:
            MethodError: the budget is none, is more than there are entries, or does not suffice for what is
                trained in any case.
        """
        tensors, fixed = self._tensors(sites, spec), self._fixed(spec)
        k = self.config.count("sensitivity_tuning", [*tensors, *fixed], spec)
        least = sum(t.size for t in fixed)
        if k <= least:
            raise MethodError(
                f"sensitivity_tuning with keep={self.config.keep!r} has {k:,} parameters on {spec.family!r}, "
                f"and its class token alone takes {least:,}; raise keep."
            )
        return min(k, least + sum(whole.cost for whole in tensors.values()))

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        k = self._budget(sites, spec)
        return ParameterCount(k, k)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """Scores of the ranked entries and the gradient of a batch."""
        return Interim(held=2 * sum(t.size for t in self._tensors(sites, spec)))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        children = {s.key: self._module(s) for own in self._matrices(sites, spec).values() for s in own}
        tensors, budget = self._tensors(sites, spec), self._budget(sites, spec)
        return SensitivityTuningModule(self.config, children, tensors, self._fixed(spec), budget)

    def _module(self, site: Site) -> SettledPair | SettledAdapter:
        c = self.config
        drops = {"dropout": 0.0 if site.name in ("o", "cross_o") else c.dropout, "drop_path": c.drop_path}
        if c.module == "adapter":
            return SettledAdapter(site.out_features, c.rank, **drops)
        return SettledPair(site.in_features, site.out_features, c.rank, **drops)

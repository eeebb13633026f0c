"""LoRAHub: LoRAs of other tasks, averaged into one with weights that are searched for without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError, MethodError
from autopeft.method import (
    Interim,
    MethodConfig,
    Objective,
    ParameterCount,
    PeftFormat,
    Stored,
    get_method,
    register,
)
from autopeft.method.low_rank import LowRankMethod
from autopeft.nn import LowRankPair, ScaledMaps
from autopeft.spec import BackboneSpec, Site

__all__ = ["LoRAHub", "Weighting", "searched_weights"]

Batch = dict[str, Tensor]

_LORA = "lora"  # the method whose entries are averaged
_SHOWN = 3
_WORSE = 1e6
"""What a loss that is no finite number counts as, in units of that without any source."""


@dataclass(frozen=True)
class Weighting:
    """What a search for weights has found.

    Attributes:
        weights: the best, (sources,).
        value: the objective there.
        start: the objective where all weights are zero.
        evaluations: how often the objective was asked for.
    """

    weights: tuple[float, ...]
    value: float
    start: float
    evaluations: int


def searched_weights(
    objective: Callable[[Sequence[float]], float], n: int, *, evaluations: int, bound: float
) -> Weighting:
    """The best of at most `evaluations` points w (n,), by COBYLA from w = 0 with a first step of `bound` / 3.

    COBYLA knows no bounds here: a coordinate beyond ±`bound` is mirrored there before the objective sees it.
    Both are as nevergrad's NGOpt does it, which the authors call.

    Raises:
        AutoPEFTError: the objective is not a finite number at w = 0. Elsewhere such a point is a bad one.
    """
    from scipy.optimize import minimize  # takes a while to import

    seen: list[tuple[float, tuple[float, ...]]] = []

    def at(x: NDArray[np.float64]) -> float:
        if len(seen) == evaluations:  # SciPy since 1.16 asks n + 2 times at least
            return seen[0][0]
        clipped = np.clip(x, -bound, bound)
        w = tuple(float(v) for v in np.clip(2 * clipped - x, -bound, bound))
        value = objective(w)
        if not math.isfinite(value):
            if not seen:
                raise AutoPEFTError(
                    f"lorahub cannot search: the loss with no source at all is {value}; train in fp32."
                )
            value = _WORSE * (1 + abs(seen[0][0]))
        seen.append((value, w))
        return value

    options = {"rhobeg": bound / 3, "maxiter": max(evaluations, n + 2)}
    minimize(at, np.zeros(n), method="COBYLA", tol=1e-6, options=options)
    value, weights = min(seen, key=lambda one: one[0])  # of equal ones the first
    return Weighting(weights, value, seen[0][0], len(seen))


class LoRAHubModule(ScaledMaps[LowRankPair]):
    """One LoRA, zero or the average of the sources; nothing of it requires a gradient.

    Attributes:
        found: what the last search has found.
        conclusion_rows: to search on.
    """

    def __init__(self, children: dict[str, LowRankPair], config: LoRAHub.Config, family: str) -> None:
        super().__init__(children, config.scale)
        self.config, self.family = config, family
        self.conclusion_rows = config.rows
        for pair in self.children_by_site():
            nn.init.zeros_(pair.A)
        self.requires_grad_(False)
        self.found: Weighting | None = None
        # Factors of each source by their names here. They stay on the CPU, and no file has them.
        self._sources: tuple[dict[str, Tensor], ...] = ()
        self._labels: tuple[str, ...] = ()

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """A (rank, in), B (out, rank) and s with s·B·A = ΔW."""
        pair = self[site]
        return pair.A, pair.B, self.scale_at(site)

    def start_from(self, stored: tuple[Stored, ...]) -> None:
        """Keep the factors of the sources until they are averaged.

        Raises:
            MethodError: a source is no LoRA, or one of another family of models, scale, rank, or of other
                sites.
        """
        self._sources = tuple(self._factors(source) for source in stored)
        self._labels = tuple(f"{s.input}.{s.entry}" for s in stored)

    def _factors(self, source: Stored) -> dict[str, Tensor]:
        c = self.config
        if source.method != _LORA and not source.own:
            raise MethodError(
                f"lorahub averages LoRAs, of the method lora or of lorahub itself, but got {source.label}; "
                "name such an entry by 'from:'."
            )
        if source.family not in (None, self.family):
            raise MethodError(
                f"lorahub averages LoRAs of one backbone, but {source.label} was trained on a model of the "
                f"family {source.family!r:.40}, and this one is of {self.family!r}; leave it out."
            )
        theirs: Any = get_method(source.method).Config.model_validate(dict(source.options))
        if theirs.rank != c.rank or not math.isclose(theirs.scale, c.scale, rel_tol=1e-5):
            raise MethodError(
                f"lorahub averages LoRAs of one rank and one scale s = α/r. Here are rank {c.rank} and "
                f"s = {c.scale:g}, but {source.label} has rank {theirs.rank} and s = {theirs.scale:g}; give "
                f"lorahub {{rank: {theirs.rank}, alpha: {theirs.scale * theirs.rank:g}}}, or leave that "
                "source out."
            )
        saved = {f"at.{key}.{n}": f"{key.replace('-', '.')}.{n}" for key in self.at for n in ("A", "B")}
        other = sorted(source.tensors.keys() ^ set(saved.values()))
        if other:
            raise MethodError(
                f"lorahub averages LoRAs at the same sites and layers, but only one of {source.label} and "
                f"lorahub here has {', '.join(other[:_SHOWN])}; give lorahub the sites and layers of its "
                "sources, or leave that source out."
            )
        own = self.state_dict()
        way_out = "give lorahub the size of its sources, or leave that source out"
        return {k: source.tensor(saved[k], tuple(v.shape), way_out).float() for k, v in own.items()}

    @torch.no_grad()
    def mix(self, weights: Sequence[float]) -> None:
        """Be the average of the sources with these weights: A = Σ wᵢ·Aᵢ and B = Σ wᵢ·Bᵢ."""
        for key, value in self.state_dict().items():
            terms = [w * source[key] for w, source in zip(weights, self._sources, strict=True)]
            value.copy_(torch.stack(terms).sum(0))

    @torch.no_grad()
    def conclude(self, batches: Iterable[Batch], objective: Objective) -> None:
        """Search for the weights on these rows, and be the average with the best.

        A hybrid that was saved has no sources any more, and stays as it is.
        """
        if not self._sources:
            return
        c, seen = self.config, list(batches)
        self.found = searched_weights(
            lambda weights: self.objective(weights, seen, objective),
            len(self._sources),
            evaluations=c.evaluations,
            bound=c.bound,
        )
        self.mix(self.found.weights)

    def objective(self, weights: Sequence[float], batches: Sequence[Batch], task: Objective) -> float:
        """CE / divisor + l1·(1/N)·Σ|wᵢ| of these weights, which the module has afterwards."""
        self.mix(weights)
        rows = sum(len(batch["labels"]) for batch in batches)
        loss = sum(float(task(batch)) * len(batch["labels"]) for batch in batches) / rows
        return loss / self.config.divisor + self.config.l1 * sum(map(abs, weights)) / len(weights)

    def remarks(self) -> list[str]:
        """The weights, what they have gained, and whether some source was never tried."""
        if self.found is None:
            return []
        named = ", ".join(
            f"{w:.2f} of {label}" for w, label in zip(self.found.weights, self._labels, strict=True) if w
        )
        said = [
            f"the objective is {self.found.value:.4g} after {self.found.evaluations} evaluations, and "
            f"{self.found.start:.4g} without any source; the weights are {named or 'all zero'}."
        ]
        tried = self.found.evaluations - 1
        if tried < len(self._labels):
            said.append(
                f"the last {len(self._labels) - tried} of the {len(self._labels)} sources were never tried; "
                f"`evaluations` of at least {len(self._labels) + 1} tries each."
            )
        return said


@register("lorahub")
class LoRAHub:
    """y = W₀x + b₀ + s·B̂·Â·x with Â = Σ wᵢ·Aᵢ and B̂ = Σ wᵢ·Bᵢ, s = α/r, of N LoRAs (Aᵢ, Bᵢ) of other tasks.

    Huang et al. 2024, arXiv:2307.13269. A recipe's `from:` names the LoRAs, at most 64, all of the same
    sites, rank and scale, and of this backbone. Each factor is averaged by itself, so that ΔW = s·Σᵢⱼ
    wᵢ·wⱼ·BᵢAⱼ has cross terms: with one weight of 1, or of −1, it is that LoRA. Nothing but w is looked for,
    and by no gradient: once all else of the recipe, the head included, has trained beside w = 0, COBYLA
    minimises CE / `divisor` + `l1`·(1/N)·Σ|wᵢ| over |wᵢ| ≤ `bound` in at most `evaluations` forwards of
    `rows` training rows, which the training's seed draws. The best point seen is kept, so that the objective
    is never above that of w = 0. Where nothing else trains, as with a language model or label words, the
    training takes no step. That is the authors' case: LoRAs of other tasks help where tasks share what they
    say. A new head reads what they add instead.

    COBYLA is what runs inside the NGOpt of nevergrad that the authors call, from w = 0 with a first step of
    `bound` / 3; a coordinate beyond a bound is mirrored at it. Its first N + 1 evaluations are w = 0 and then
    one more source at a time at `bound` / 3, each kept where the objective falls: a greedy selection, in
    which the order of `from:` counts. Later ones move all weights, on points that SciPy before 1.16
    (Powell's code, as the authors had) and since (PRIMA) choose differently. The authors divide CE twice, by
    the number of rows once more: `divisor` equal to `rows` does it. CE is the mean over all tokens of the
    rows that go through the model at once.

    A and B are zero at first: the identity. They do not train, so that they count as deployed,
    r·(in + out) for each site, and as not trained. The sources are in memory beside them for as long as the
    entry is attached, and no file of the hybrid holds them. Mergeable. As it is zero while others train, no
    composition holds it but `sum` and `chain`.
    """

    traits = replace(LowRankMethod.traits, needs=frozenset({"artefacts"}), stochastic=False, searched=True)
    size_field: ClassVar[str] = "rank"
    peft = PeftFormat("lora")

    class Config(MethodConfig):
        rank: int = Field(default=8, ge=1, le=1024, description="r, of every source")
        alpha: float | None = Field(default=None, gt=0, le=65_536, description="α; default 2·rank")
        rows: int = Field(default=5, ge=1, le=100_000, description="training rows to search on")
        evaluations: int = Field(default=40, ge=1, le=100_000, description="of the objective, at most")
        bound: float = Field(default=1.5, gt=0, le=100, description="the largest size of a weight")
        l1: float = Field(default=0.05, ge=0, le=100, description="factor of the mean size of the weights")
        divisor: float = Field(default=1.0, gt=0, le=1e6, description="the loss is divided by it")

        @property
        def scale(self) -> float:
            return 2.0 if self.alpha is None else self.alpha / self.rank

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def change_rank(self) -> int:
        return self.config.rank

    def _size(self, sites: Sequence[Site]) -> int:
        return sum(self.config.rank * (s.in_features + s.out_features) for s in sites)

    def parameter_count(self, sites: Sequence[Site], spec: BackboneSpec) -> ParameterCount:
        return ParameterCount(self._size(sites), 0)

    def interim(self, sites: Sequence[Site], spec: BackboneSpec) -> Interim:
        """The LoRA itself, which does not train, and each source."""
        return Interim(held=self._size(sites), of_each_source=self._size(sites))

    def build(self, sites: Sequence[Site], spec: BackboneSpec) -> nn.Module:
        rank = self.config.rank
        pairs = {s.key: LowRankPair(s.in_features, s.out_features, rank) for s in sites}
        return LoRAHubModule(pairs, self.config, spec.family)

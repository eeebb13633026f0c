"""The LoRA that a hybrid is exported as: exact where it can be, else near it, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autopeft.export.lora_factors import (
    Factors,
    MapChanges,
    NotServable,
    factors_of,
    map_changes,
    weighted_factors,
)
from autopeft.export.lora_fit import Moments, add_moments, exchanged, fitted, in_parts, moments
from autopeft.graph import VLLM_RANKS as RANKS
from autopeft.hybrid.merging import Rest
from autopeft.tasks.encode import EncodedSplit
from autopeft.tasks.kinds import get_kind
from autopeft.training.contexts import evaluation_mode
from autopeft.training.forward import Forward
from autopeft.training.scoring import Scored, score_by_rows

if TYPE_CHECKING:
    from autopeft.hybrid import Hybrid

__all__ = ["Cost", "LoRAWeights", "Rows", "lora_weights"]

_WORSE = 0.01  # of the loss: how much more than the largest rank's a smaller rank may have
_BATCH = 16


@dataclass(frozen=True)
class Rows:
    """Encoded rows of the hybrid's own task.

    Attributes:
        fit: what an approximation is fitted on.
        measure: what its cost is measured on.
        metric: the name of the score.
        told: is told how far it is, in sentences: on a large model each takes minutes.
    """

    fit: EncodedSplit
    measure: EncodedSplit
    metric: str
    told: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Cost:
    """What an approximation costs: score and loss of the hybrid and of the LoRA on rows of *select*.

    Attributes:
        rows: how many.
        metric: the score's name, higher is better.
        before, after: of the hybrid, of the LoRA.
        losses: the loss of the LoRA by rank, of the ranks that were tried.
    """

    rows: int
    metric: str
    before: Scored
    after: Scored
    losses: Mapping[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures as data."""
        said = {
            name: {"score": found.score, "loss": found.loss}
            for name, found in (("before", self.before), ("after", self.after))
        }
        tried = {str(rank): loss for rank, loss in self.losses.items()}
        return {"rows": self.rows, "metric": self.metric, **said, "losses": tried}

    @property
    def text(self) -> str:
        """The figures in a sentence."""
        said = f"On {self.rows:,} rows of select, {self.metric} is {self.after.score:.4f} with it"
        said += f" and {self.before.score:.4f} with the hybrid"
        if self.after.loss is None or self.before.loss is None:
            return f"{said}."
        return f"{said}; the loss is {self.after.loss:.4f} and {self.before.loss:.4f}."


@dataclass(frozen=True)
class LoRAWeights:
    """A hybrid as a LoRA. Paths and names are the base model's.

    Attributes:
        factors: by path of a linear map; ΔW = b·a.
        biases: what becomes of biases, by name.
        transposed: whether the maps' weights are stored (in, out).
        fitted: of which maps ΔW is an approximation, and what it stands for.
        cut: the rank that some maps were cut to; `None` where none was.
        cost: what approximation and cut cost; `None` where the LoRA is exact.
    """

    factors: Mapping[str, Factors]
    biases: Mapping[str, Tensor]
    transposed: bool
    fitted: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    cost: Cost | None = None

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(factors.rank for factors in self.factors.values())

    @property
    def exact(self) -> bool:
        """Whether it gives the hybrid's own logits, up to rounding."""
        return not self.fitted and self.cut is None

    def to_dict(self) -> dict[str, Any]:
        """What it is, without its numbers, as data."""
        return {
            "rank": self.rank,
            "maps": len(self.factors),
            "exact": self.exact,
            "cut_to": self.cut,
            "fitted": dict(self.fitted),
            "biases": sorted(self.biases),
            "cost": None if self.cost is None else self.cost.to_dict(),
        }


def lora_weights(
    hybrid: Hybrid, rank: int | None = None, rows: Callable[[], Rows] | None = None, *, biases: bool = True
) -> LoRAWeights:
    """A hybrid as a LoRA.

    It is exact where the hybrid changes weights alone, and by no higher rank than `rank`. Else it is fitted
    on rows (see `autopeft.export.lora_fit`), cut to `rank`, and its cost is measured.

    Args:
        hybrid: attached; it is as it was afterwards.
        rank: the largest; default: what it takes to be exact, else the smallest of vLLM's ranks whose loss is
            within 1 % of that of the largest one.
        rows: encodes rows of its task where they are needed.
        biases: whether the format holds biases; without, their changes are fitted too.

    Raises:
        NotServable: the hybrid changes what no linear map could take, or rows are needed and there are none.
        CompositionError: something acts where no linear map could take it.
    """
    changes = map_changes(hybrid)
    if changes.biases and not biases:
        changes = _without_biases(changes)
    if not changes.paths():
        raise NotServable("This hybrid changes the weight of no linear map, so that there is no LoRA of it.")
    if len({changes.places[path].transposed for path in changes.paths()}) > 1:
        raise NotServable("The maps are stored in both layouts, which one LoRA's config cannot say.")
    factors = {
        path: changes.exact.get(path) or factors_of(delta, changes.noise[path])
        for path, delta in changes.deltas.items()
        if path not in changes.rest
    }
    largest = RANKS[-1] if rank is None else rank
    wide = [path for path, found in factors.items() if found.rank > largest]
    if not changes.rest and not wide:
        return LoRAWeights(factors, changes.biases, _transposed(changes))
    if rows is None:
        raise NotServable(_needs_rows(changes, wide, largest))
    return _Approximation(hybrid, changes, factors, rows()).found(rank)


def _transposed(changes: MapChanges) -> bool:
    return any(changes.places[path].transposed for path in changes.paths())


def _needs_rows(changes: MapChanges, wide: list[str], largest: int) -> str:
    what = next((rest.what for rest in changes.rest.values()), None)
    why = (
        f"{what} is no change of a weight"
        if what
        else f"the change of {wide[0]} has more than {largest} ranks"
    )
    return (
        f"{why[:1].upper()}{why[1:]}, so that a LoRA can only come near it, which takes rows of the hybrid's "
        "task; export a run or an exported folder whose data can still be read, or merge it (--as merged)."
    )


def _without_biases(changes: MapChanges) -> MapChanges:
    """What a format without biases cannot say becomes something that is left.

    Raises:
        NotServable: the bias belongs to no linear map.
    """
    rest = dict(changes.rest)
    for name in changes.biases:
        path = name.removesuffix(".bias")
        if path not in changes.places:
            raise NotServable(f"This hybrid changes {name}, which belongs to no linear map of a layer.")
        rest.setdefault(path, Rest(f"a bias of {path}", path))
    return replace(changes, rest=rest, biases={})


class _Approximation:
    """A LoRA near a hybrid that is none."""

    def __init__(
        self, hybrid: Hybrid, changes: MapChanges, factors: Mapping[str, Factors], rows: Rows
    ) -> None:
        self.hybrid, self.changes, self.exact, self.rows = hybrid, changes, factors, rows
        self.kind = get_kind(rows.measure.kind)
        self.base = hybrid.injection.base

    def found(self, rank: int | None) -> LoRAWeights:
        """The LoRA of this rank, or of the smallest one that costs little."""
        rows, told = self.rows, self.rows.told
        told(
            f"A LoRA is fitted on {len(rows.fit):,} rows of train; what it costs is measured on "
            f"{len(rows.measure):,} rows of select."
        )
        with evaluation_mode(self.hybrid.model):
            before = self._score()
            told(f"The hybrid: {self._said(before)}.")
            near = self._near(rank)
            ranks = [rank] if rank is not None else self._ranks(near)
            tried: dict[int, Scored] = {}
            for one in [ranks[-1], *ranks[:-1]]:  # the largest first, which the others are held against
                tried[one] = self._score_of(self._cut(near, one))
                told(f"A LoRA of rank {one}: {self._said(tried[one])}.")
                if one != ranks[-1] and self._as_good(tried[one], tried[ranks[-1]]):
                    break
            best = min((r for r in tried if self._as_good(tried[r], tried[ranks[-1]])), default=ranks[-1])
        losses = {r: found.loss for r, found in sorted(tried.items()) if found.loss is not None}
        cost = Cost(len(rows.measure), rows.metric, before, tried[best], losses)
        what = {path: rest.what for path, rest in self.changes.rest.items()}
        factors = self._cut(near, best)
        # In the model's order.
        ordered = {path: factors[path] for path in self.changes.paths() if path in factors}
        return LoRAWeights(ordered, self.changes.biases, _transposed(self.changes), what, best, cost)

    def _near(self, rank: int | None) -> dict[str, Factors]:
        """Of each map factors whose first r ranks are the nearest of that rank; exact ones where they are
        small enough for every rank."""
        hybrid, changes = self.hybrid, self.changes
        smallest, largest = (RANKS[1], RANKS[-1]) if rank is None else (rank, rank)
        wide = [path for path, found in self.exact.items() if found.rank > smallest]
        paths = [path for path in changes.paths() if path in changes.rest or path in wide]
        way = Forward(hybrid.model, kind=self.kind)
        device = next(hybrid.model.parameters()).device
        batches = list(way.batches(self.rows.fit, _BATCH, shuffle=False, device=device))
        plain = self._tensors(changes.deltas)
        near = {path: factors for path, factors in self.exact.items() if path not in paths}
        parts = list(in_parts(hybrid, changes, paths))
        for part in parts:
            found = moments(hybrid, changes, plain, part, batches, way)
            near.update(self._fit(found, largest))
        if not changes.rest:
            return near
        self.rows.told("A first fit is there; its own errors are taken into account.")
        deltas = {path: near[path].product() for path in paths}
        tensors = self._tensors({**changes.deltas, **deltas})
        first = {path: deltas[path] - self._exactly(path, deltas[path]) for path in changes.rest}
        for part in parts:
            if len(parts) > 1:
                found = moments(hybrid, changes, plain, part, batches, way)
            add_moments(hybrid, changes, tensors, found, first, batches, way)
            near.update(self._fit(found, largest))
        return near

    def _fit(self, found: Mapping[str, Moments], largest: int) -> dict[str, Factors]:
        """The factors of maps by their moments."""
        near = {}
        for path, one in found.items():
            delta = fitted(one) if path in self.changes.rest else 0.0
            near[path] = weighted_factors(delta + self._exactly(path, one.cross), one.covariance(), largest)
        return near

    def _exactly(self, path: str, like: Tensor) -> Tensor:
        """The exact change of a map (out, in), in fp32; zeros where it has none."""
        delta = self.changes.deltas.get(path)
        return torch.zeros(like.shape) if delta is None else delta.cpu().float()

    def _ranks(self, near: Mapping[str, Factors]) -> list[int]:
        """The ranks that are tried: vLLM's, up to the first that leaves nothing out."""
        most = max(factors.rank for factors in near.values())
        return [r for r in RANKS[1:] if r < most] + [next((r for r in RANKS if r >= most), RANKS[-1])]

    def _cut(self, near: Mapping[str, Factors], rank: int) -> dict[str, Factors]:
        """Every map cut to a rank; one that is exact without a cut is so."""
        return {
            path: self.exact[path]
            if path in self.exact and self.exact[path].rank <= rank
            else found.cut(rank)
            for path, found in near.items()
        }

    def _tensors(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base model's tensors with these changes and the new biases in them."""
        tensors, names = dict(self.changes.biases), self.hybrid.injection.canonical_names()
        for path, delta in deltas.items():
            name = names[f"{path}.weight"]
            before = self.base.get_parameter(name)
            stored = delta.t() if self.changes.places[path].transposed else delta
            tensors[name] = before.detach().float() + stored.to(before.device)
        return tensors

    def _score_of(self, factors: Mapping[str, Factors]) -> Scored:
        deltas = {path: found.product() for path, found in factors.items()}
        with self.hybrid.bare(), exchanged(self.base, self._tensors(deltas)):
            return self._score()

    def _score(self) -> Scored:
        return score_by_rows(self.hybrid.model, self.rows.measure, self.rows.metric, batch_size=_BATCH)

    def _said(self, found: Scored) -> str:
        """A score, and the loss where there is one."""
        loss = "" if found.loss is None else f", loss {found.loss:.4f}"
        return f"{self.rows.metric} {found.score:.4f}{loss}"

    @staticmethod
    def _as_good(one: Scored, largest: Scored) -> bool:
        if one.loss is None or largest.loss is None:
            return one.score >= largest.score
        return one.loss <= largest.loss + _WORSE * abs(largest.loss)

"""Baselines at the same budget: LoRA on queries and values, and the head alone, with swept learning rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from autopeft.counting import count
from autopeft.errors import AutoPEFTError, SiteError
from autopeft.recipe import Recipe
from autopeft.search.jobs import CountTable

if TYPE_CHECKING:
    from autopeft.spec import BackboneSpec

__all__ = ["Baseline", "baselines", "head_only", "lora_baseline"]

_LORA_RATES = (5e-4, 1.5e-3, 4.5e-3)
_HEAD_RATES = (1e-3, 5e-3, 2e-2)
# The head learns as it does in the default space, so that what differs is the modules.
_HEAD: dict[str, Any] = {"training": {"groups": {"head": {"learning_rate": 1e-3}}}}


@dataclass(frozen=True)
class Baseline:
    """A fixed structure with several learning rates, of which *select* chooses one.

    Attributes:
        candidates: recipe dicts that differ in the learning rate alone.
    """

    name: str
    candidates: tuple[Mapping[str, Any], ...] = field(repr=False)
    counts: CountTable


def _spread(rates: Sequence[float], count: int) -> list[float]:
    """`count` learning rates spread geometrically over the range of `rates`; one alone is the middle."""
    if count == 1:
        return [rates[len(rates) // 2]]
    low, high = rates[0], rates[-1]
    return [float(f"{low * (high / low) ** (i / (count - 1)):.3g}") for i in range(count)]


def _lora(rank: int, sites: list[str] | None, at: str) -> dict[str, Any]:
    config: dict[str, Any] = {"rank": rank} if sites is None else {"sites": sites, "rank": rank}
    return {
        "autopeft": 1,
        "name": "lora-baseline",
        "layers": [{"at": at, "attach": [{"lora": config}]}],
        **_HEAD,
    }


def lora_baseline(spec: BackboneSpec, limits: tuple[int, int], rates: int) -> Baseline | None:
    """LoRA of the largest rank that fits the budget, on q and v of every layer, or of the last layers
    where rank 1 is too large.

    `None` where even one layer at rank 1 is over the budget, or the backbone has no attention to put LoRA on.
    """
    upper = limits[1]
    for sites in (None, ["qkv"]):
        try:
            unit = count(Recipe.from_dict(_lora(1, sites, "all")), spec).deployed
        except SiteError:
            continue
        if unit == 0:
            continue
        layers = min(s.layers for s in spec.stacks)
        rank, at = min(upper // unit, 1024, min(s.hidden for s in spec.stacks)), "all"
        if rank == 0:
            keep = max(upper * layers // unit, 0)
            if keep == 0:
                return None
            rank, at = 1, f"last {keep}"
        base = _lora(rank, sites, at)
        counts = count(Recipe.from_dict(base), spec).to_dict()
        if counts["deployed"] > upper:
            return None
        place = "all layers" if at == "all" else f"the {at} layers"
        name = f"LoRA rank {rank} on {'q, v' if sites is None else 'qkv'} of {place}"
        return Baseline(name, _with_rates(base, _spread(_LORA_RATES, rates)), counts)
    return None


def head_only(spec: BackboneSpec, rates: int) -> Baseline:
    """The task head on the frozen backbone."""
    base: dict[str, Any] = {"autopeft": 1, "name": "head-only"}
    counts = count(Recipe.from_dict(base), spec).to_dict()
    return Baseline("head only", _with_rates(base, _spread(_HEAD_RATES, rates)), counts)


def _with_rates(base: Mapping[str, Any], rates: Sequence[float]) -> tuple[Mapping[str, Any], ...]:
    training = base.get("training", {})
    return tuple(
        Recipe.from_dict({**base, "training": {**training, "learning_rate": lr}}).to_dict() for lr in rates
    )


def baselines(spec: BackboneSpec, limits: tuple[int, int], rates: int) -> list[Baseline]:
    """Every baseline that exists for this backbone and budget."""
    found = [lora_baseline(spec, limits, rates), head_only(spec, rates)]
    present = [b for b in found if b is not None]
    if any(len(b.candidates) == 0 for b in present):
        raise AutoPEFTError("A baseline needs at least one learning rate.")
    return present

"""Linear maps beside those of the backbone, times a constant: what LoRA and its relatives share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor, nn

from autopeft.method.lifecycle import Explicit, Placement
from autopeft.nn.low_rank import Down, JoinedPair, LowRankPair, PrunedPair
from autopeft.nn.per_site import PerSite
from autopeft.spec import Site

if TYPE_CHECKING:
    from autopeft.method import Call

__all__ = ["JoinedPairs", "PrunedPairs", "ScaledMaps", "ScaledPairs", "down_and_up", "plain_loras"]

_M = TypeVar("_M", bound=nn.Module)
_P = TypeVar("_P", bound=LowRankPair)
_Q = TypeVar("_Q", bound=PrunedPair)


def down_and_up(module: nn.Module, up: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The parts `up` and `down` (everything else) of a module of two factors."""
    apart = {id(p) for p in up}
    return {"down": [p for p in module.parameters() if id(p) not in apart], "up": up}


class ScaledMaps(PerSite[_M]):
    """δ = s·f(x) at each site, or f(x) behind a gate, which takes the place of s.

    A child f maps (…, in) to (…, out), and `f.product()` is the same as a matrix (out, in). s is `scale`;
    `scale_at` gives sites an s of their own.
    """

    def __init__(self, children: dict[str, _M], scale: float) -> None:
        super().__init__(children)
        self.scale = scale

    def scale_at(self, site: Site) -> float:
        """s at this site."""
        return self.scale

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](x)
        return out if call.gated else out * self.scale_at(site)

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        child: Any = self[site]
        return weight + self.scale_at(site) * child.product(), bias


def plain_loras(maps: ScaledMaps[Any], sites: Iterable[Site], rank_of: Callable[[Site], int]) -> Explicit:
    """LoRAs of these ranks, at the scale that the maps have, in the place of low-rank maps."""
    placed = []
    for site in sites:
        rank, dropout = rank_of(site), maps[site].dropout
        if rank and site.layer is not None:
            options = {"rank": rank, "alpha": maps.scale_at(site) * rank}
            options |= {"dropout": dropout} if dropout else {}
            placed.append(Placement("lora", site.stack, site.layer, site.name, options))
    return Explicit(tuple(placed))


class ScaledPairs(ScaledMaps[_P]):
    """`ScaledMaps` of low-rank pairs."""

    def as_lora(self, site: Site) -> tuple[Tensor, Tensor, float]:
        """A (rank, in), B (out, rank) and s with s·B·A = ΔW."""
        pair = self[site]
        return pair.down(), pair.B, self.scale_at(site)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """The down factors (A, and what lies between the factors) and the up factors of all sites."""
        return down_and_up(self, self.up_parameters())

    def up_parameters(self) -> list[nn.Parameter]:
        """B of every site, which is zero at init."""
        return [pair.B for pair in self.children_by_site()]


class JoinedPairs(ScaledPairs[JoinedPair]):
    """`ScaledPairs` several of which have one A, by the names of these."""

    def __init__(self, children: dict[str, JoinedPair], downs: dict[str, Down], scale: float) -> None:
        super().__init__(children, scale)
        self.downs = nn.ModuleDict(downs)


class PrunedPairs(ScaledPairs[_Q]):
    """`ScaledPairs` of which training leaves some ranks out, at each site others; all start at `largest`."""

    def __init__(self, children: dict[str, _Q], scale: float, largest: int) -> None:
        super().__init__(children, scale)
        self.largest = largest

    def ranks(self) -> dict[str, int]:
        """How many ranks stay at each site (`encoder.0.q`)."""
        pairs = zip(self.at, self.children_by_site(), strict=True)
        return {key.replace("-", "."): pair.rank for key, pair in pairs}

    def explicit(self, sites: Sequence[Site]) -> Explicit:
        """LoRAs of the ranks that are left."""
        return plain_loras(self, sites, lambda site: self[site].rank)

    def deploy(self) -> None:
        """Plain pairs: LoRAs of the ranks that are left."""
        for pair in self.children_by_site():
            pair.deploy()

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for key, pair in zip(self.at, self.children_by_site(), strict=True):
            rank, a, b = min(self.largest, shapes[f"at.{key}.A"][0]), pair.A, pair.B
            pair.hold(a.new_zeros(rank, a.shape[1]), b.new_zeros(len(b), rank))

"""Linear maps beside those of the backbone, times a constant: what LoRA and its relatives share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor, nn

from autopeft.nn.low_rank import LowRankPair
from autopeft.nn.per_site import PerSite
from autopeft.spec import Site

if TYPE_CHECKING:
    from autopeft.method import Call

__all__ = ["ScaledMaps", "ScaledPairs"]

_M = TypeVar("_M", bound=nn.Module)
_P = TypeVar("_P", bound=LowRankPair)


class ScaledMaps(PerSite[_M]):
    """δ = s·f(x) at each site, or f(x) behind a gate, which takes the place of s.

    A child f maps (…, in) to (…, out), and `f.product()` is the same as a matrix (out, in).
    """

    def __init__(self, children: dict[str, _M], scale: float) -> None:
        super().__init__(children)
        self.scale = scale

    def side(self, site: Site) -> Literal["input", "output"]:
        return "output"

    def delta(self, site: Site, x: Tensor, y: Tensor, call: Call) -> Tensor:
        out: Tensor = self[site](x)
        return out if call.gated else out * self.scale

    def merged(self, site: Site, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        child: Any = self[site]
        return weight + self.scale * child.product(), bias


class ScaledPairs(ScaledMaps[_P]):
    """`ScaledMaps` of low-rank pairs."""

    def up_parameters(self) -> list[nn.Parameter]:
        """B of every site, which is zero at init."""
        return [pair.B for pair in self.children_by_site()]

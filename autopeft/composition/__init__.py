"""How modules act together: `sum`, `chain`, `gate`, `route`."""

from __future__ import annotations

from autopeft.composition.chain import Chain
from autopeft.composition.contract import Child, ChildSpec, Composition, Way
from autopeft.composition.gate import Gate
from autopeft.composition.route import Route
from autopeft.composition.sums import Sum, one_after_the_other

__all__ = [
    "COMPOSITIONS",
    "Chain",
    "Child",
    "ChildSpec",
    "Composition",
    "Gate",
    "Route",
    "Sum",
    "Way",
    "one_after_the_other",
]

COMPOSITIONS: dict[str, type[Sum] | type[Chain] | type[Gate] | type[Route]] = {
    c.kind: c for c in (Sum, Chain, Gate, Route)
}

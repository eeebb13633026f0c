"""Where a hybrid's deployed parameters lie: site by site, layer by layer.

Derived from the composition graph with the methods' own closed-form counts, asked one site at a time. What
cannot be split like that (parameters that several sites share, a mask over all tensors) is counted under the
whole model, so that the sum is always the hybrid's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from autopeft.composition import get_composition
from autopeft.errors import AutoPEFTError
from autopeft.graph import CompositionGraph, Entry, Node
from autopeft.method import WeightTarget
from autopeft.spec import SITE_NAMES, BackboneSpec

__all__ = ["SHARED", "Column", "Placement", "place_parameters"]

SHARED = "shared by several places"
Column = tuple[str | None, int | None]
"""(stack, layer); a layer of `None` is what lies before or outside the layers, a stack of `None` the whole
model."""


@dataclass(frozen=True)
class Placement:
    """Deployed parameters by row (a site's name, or another kind of tensor) and column.

    Attributes:
        rows: in the order of the forward pass.
        columns: every layer of every stack, then what lies in none.
        values: (row, column) to parameters; zeros are left out.
        total: their sum.
    """

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    values: dict[tuple[str, Column], int]
    total: int

    def of_row(self, row: str) -> int:
        return sum(n for (name, _), n in self.values.items() if name == row)

    def of_column(self, column: Column) -> int:
        return sum(n for (_, other), n in self.values.items() if other == column)


def place_parameters(graph: CompositionGraph) -> Placement:
    """Place every deployed parameter of a graph; the sum is `graph.parameter_count().deployed`."""
    values: dict[tuple[str, Column], int] = {}
    pieces = [piece for entry in graph.entries.values() for piece in _of_entry(entry, graph.spec)]
    pieces += [piece for node in graph.nodes() for piece in _of_node(graph, node)]
    for row, column, n in pieces:
        if n:
            values[row, column] = values.get((row, column), 0) + n
    used = {row for row, _ in values}
    rows = [name for name in SITE_NAMES if name in used]
    rows += sorted(used - set(rows) - {SHARED}) + ([SHARED] if SHARED in used else [])
    layers: list[Column] = [(s.name, i) for s in graph.spec.stacks for i in range(s.layers)]
    loose = dict.fromkeys(column for _, column in values if column not in layers)
    return Placement(tuple(rows), (*layers, *loose), values, sum(values.values()))


_Piece = tuple[str, Column, int]


def _split(found: Sequence[_Piece], total: int) -> Iterator[_Piece]:
    """The pieces where they explain no more than the total, and what they leave as shared."""
    placed = sum(n for _, _, n in found)
    if placed > total:
        found, placed = (), 0
    yield from found
    yield SHARED, (None, None), total - placed


def _of_entry(entry: Entry, spec: BackboneSpec) -> Iterator[_Piece]:
    if not entry.sites and "logits" in entry.ways:
        yield "logits", (None, None), entry.count.deployed
        return
    found = _by_site(entry, spec) if entry.sites else _by_tensor(entry, spec)
    yield from _split(found, entry.count.deployed)


def _by_site(entry: Entry, spec: BackboneSpec) -> list[_Piece]:
    try:
        return [
            (site.name, (site.stack, site.layer), entry.method.parameter_count((site,), spec).deployed)
            for site in entry.sites
        ]
    # A method that works on several sites together may refuse one alone.
    except AutoPEFTError:
        return []


def _by_tensor(entry: Entry, spec: BackboneSpec) -> list[_Piece]:
    """Of a method that alters whole tensors of the backbone: those that its module names, by their sizes.

    The module is built without memory; one whose targets depend on values stays unplaced.
    """
    tensors = {t.name: t for t in spec.tensors}
    try:
        with torch.device("meta"):
            module: Any = entry.method.build(entry.sites, spec)
            targets: Sequence[WeightTarget] = getattr(module, "weight_targets", tuple)()
    except (RuntimeError, NotImplementedError):
        return []
    altered = [tensors[t.tensor] for t in targets if t.tensor in tensors]
    return [(t.site or f"other {t.role}".replace("_", " "), (t.stack, t.layer), t.size) for t in altered]


def _of_node(graph: CompositionGraph, node: Node) -> Iterator[_Piece]:
    """Parameters of a composition itself (a gate's, a router's), asked for one site."""
    if not node.count.deployed:
        return
    found: list[_Piece] = []
    children = [graph.child_spec(child) for child in node.children]
    for site in {s.key: s for child in children for s in child.sites}.values():
        here = [replace(c, sites=(site,)) for c in children if any(s.key == site.key for s in c.sites)]
        count = get_composition(node.kind).parameter_count(here, dict(node.options))
        found.append((site.name, (site.stack, site.layer), count.deployed))
    yield from _split(found, node.count.deployed)

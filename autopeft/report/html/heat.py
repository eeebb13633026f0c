"""The heat map of where parameters went, as a table: sites down, layers across."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autopeft.graph import CompositionGraph
from autopeft.report.html.figure import short
from autopeft.report.html.placement import Column, place_parameters
from autopeft.report.text import number

__all__ = ["Heat", "HeatCell", "heat_of"]


@dataclass(frozen=True)
class HeatCell:
    """Parameters at one place: short and full text, and the strength of its colour in per cent."""

    text: str
    full: str
    strength: int


@dataclass(frozen=True)
class Heat:
    """The table.

    `groups` are (stack, number of columns); every row has a cell for each column and its sum.
    """

    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...], HeatCell], ...]
    sums: tuple[HeatCell, ...]
    total: str


def _cell(n: int, most: int, where: str) -> HeatCell:
    if not n:
        return HeatCell("", f"{where}: 0", 0)
    # The square root keeps small modules beside large ones visible; the figures are there to be read.
    return HeatCell(short(n), f"{where}: {number(n)} parameters", max(8, round(85 * math.sqrt(n / most))))


def _column(column: Column) -> str:
    stack, layer = column
    if layer is not None:
        return str(layer)
    return f"outside {stack} layers" if stack else "whole model"


def heat_of(graph: CompositionGraph) -> Heat | None:
    """The heat map of a graph; `None` where it has no parameters."""
    placed = place_parameters(graph)
    if not placed.total:
        return None
    most = max(placed.values.values())
    groups: dict[str, int] = {}
    for stack, layer in placed.columns:
        name = f"{stack} layer" if layer is not None else ""
        groups[name] = groups.get(name, 0) + 1
    rows = []
    for row in placed.rows:
        cells = tuple(
            _cell(placed.values.get((row, column), 0), most, f"{row}, {column[0] or ''} {_column(column)}")
            for column in placed.columns
        )
        rows.append((row, cells, HeatCell(number(placed.of_row(row)), "", 0)))
    sums = tuple(
        HeatCell(short(n) if (n := placed.of_column(p)) else "", number(n), 0) for p in placed.columns
    )
    return Heat(
        tuple(groups.items()), tuple(map(_column, placed.columns)), tuple(rows), sums, number(placed.total)
    )

"""The winner against every other contender as a figure: mean differences with their intervals, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from analysis import Estimate, differences, estimate
from cells import TOLD
from tables import FIRST, SECOND, Confirmation

__all__ = ["figure"]

_LEFT, _WIDTH, _RIGHT, _LINE, _TOP = 210, 460, 20, 15, 34
_COLOURS = ("#1b6ca8", "#c1571a", "#3c8c52")
_STYLE = "text{font:13px sans-serif;fill:#222}.axis{stroke:#999}.zero{stroke:#222}.mark{stroke-width:2}"


def figure(rows: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the latest confirmation: for each contender a line for each of the first views, at the mean
    of winner less contender in points. Contenders with one search a cell have no interval: they are left
    out."""
    which = SECOND if SECOND.of(rows) else FIRST
    rows, shown = which.of(rows), list(which.views.items())[: len(_COLOURS)]
    found = {
        other: [(i, e) for i, (_, view) in enumerate(shown) if (e := _estimate(rows, other, view, which))]
        for other in TOLD[1:]
    }
    found = {other: lines for other, lines in found.items() if lines}
    ends = [x for lines in found.values() for _, e in lines for x in (e.mean - e.half, e.mean + e.half)]
    low, high = math.floor(min([-1.0, *ends])), math.ceil(max([1.0, *ends]))
    scale = _WIDTH / (high - low)
    at = lambda points: _LEFT + (points - low) * scale  # noqa: E731
    parts, y = _legend([name for name, _ in shown]), _TOP
    for other, lines in found.items():
        parts.append(f'<text x="8" y="{y + _LINE * len(lines) / 2 + 4:.0f}">{escape(other)}</text>')
        for i, told in lines:
            y += _LINE
            parts.append(_mark(told, y - _LINE / 2, at, _COLOURS[i]))
        y += _LINE
    parts += _axis(range(low, high + 1), y, at)
    size = (_LEFT + _WIDTH + _RIGHT, y + 40)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" '
        f'viewBox="0 0 {size[0]} {size[1]}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _estimate(
    rows: Sequence[Mapping[str, Any]], other: str, view: Any, which: Confirmation
) -> Estimate | None:
    return estimate(differences(rows, "winner", other, view), pooled=which.pooled)


def _legend(names: Sequence[str]) -> list[str]:
    return [
        f'<rect x="{_LEFT + 110 * i}" y="10" width="12" height="12" fill="{_COLOURS[i]}"/>'
        f'<text x="{_LEFT + 110 * i + 17}" y="21">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]


def _mark(told: Estimate, y: float, at: Any, colour: str) -> str:
    ends = [at(told.mean - told.half), at(told.mean + told.half)]
    return (
        f'<line class="mark" stroke="{colour}" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{at(told.mean):.1f}" cy="{y}" r="4" fill="{colour}"/>'
    )


def _axis(ticks: Sequence[int], y: float, at: Any) -> list[str]:
    parts = [
        f'<line class="{"zero" if not tick else "axis"}" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{_TOP}" '
        f'y2="{y}" stroke-dasharray="{0 if not tick else 2}"/>'
        f'<text x="{at(tick):.1f}" y="{y + 16}" text-anchor="middle">{f"{tick:+d}" if tick else 0}</text>'
        for tick in ticks
    ]
    middle = _LEFT + _WIDTH / 2
    return [
        *parts,
        f'<text x="{middle}" y="{y + 34}" text-anchor="middle">winner less contender, points</text>',
    ]

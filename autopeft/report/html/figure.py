"""A figure of the page: what plotly needs as JSON, its caption, and what it says in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "RED",
    "Figure",
    "Missing",
    "figure",
    "log_ticks",
    "script_json",
    "short",
]

# Of equal weight on white and on near-black; every use has a symbol, a dash or a word beside it.
BLUE, ORANGE, GREEN, RED, GREY = "#3987d6", "#d9822b", "#2f9e77", "#cf4f4f", "#8b919b"


@dataclass(frozen=True)
class Missing:
    """What stands in a figure's place where there is nothing to draw: one sentence."""

    reason: str


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        id: of its element in the page.
        title: what is shown.
        caption: how to read it.
        data: the figure as JSON that may stand inside a `<script>` element.
        height: in CSS pixels.
    """

    id: str
    title: str
    caption: str
    data: str
    height: int = 360


def short(n: float) -> str:
    """A count or a rate in a few characters: `384`, `1.2k`, `113k`, `2.5M`, `0.001`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            value = n / size
            return f"{value:.1f}".removesuffix(".0") + unit if value < 9.95 else f"{value:.0f}{unit}"
    return f"{n:g}"


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis over positive `values`: some in each decade, the fewer the more decades;
    round numbers from just below the least to just above the greatest where they lie close together."""
    least, most = min(values), max(values)
    span = math.log10(most / least)
    if span < 0.3:
        rough = max(most - least, most / 50) / 4
        size = 10 ** math.floor(math.log10(rough))
        step = size * next(m for m in (1, 2, 5, 10) if m * size >= rough)
        first, last = max(1, math.floor(least / step)), math.ceil(most / step)
        ticks = [n * step for n in range(first, last + 1)]
        return {"tickvals": ticks, "ticktext": [f"{t:,.6g}" for t in ticks], "dtick": None}
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = (1, 1.5, 2, 3, 4, 5, 7) if span <= 1 else (1, 2, 5) if span <= 3 else (1,)
    ticks = [float(f"{step:g}e{exponent}") for exponent in range(low, high + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [short(t) for t in ticks], "dtick": None}


def script_json(text: str) -> str:
    """JSON that can end no `<script>` element and start no comment, for `<script type="application/json">`.

    The characters stand only inside strings, where JSON reads the escapes as the same text.
    """
    for character in ("&", "<", ">", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def figure(id: str, title: str, caption: str, drawn: go.Figure, height: int = 360) -> Figure:
    """Take a plotly figure into the page: its own title and template go, for the page has both."""
    drawn.update_layout(title=None, template="none", height=height)
    data: dict[str, Any] = json.loads(str(drawn.to_json(engine="json")))
    data["layout"].pop("template", None)
    plain = json.dumps({"data": data["data"], "layout": data["layout"]}, allow_nan=False)
    return Figure(id, title, caption, script_json(plain), height)

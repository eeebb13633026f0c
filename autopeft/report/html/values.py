"""Values of a stranger's file: numbers and texts as they may be shown, or nothing."""

from __future__ import annotations

import math
from typing import Any

from autopeft.errors import printable

__all__ = ["plotly_text", "real", "shown"]

_TEXT = 2000


def real(value: Any) -> float | None:
    """A finite number, or `None` for anything else (also for integers beyond what a float holds)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: Any, limit: int = _TEXT) -> str:
    """A value as text of bounded length; what could hide or reorder what stands there becomes `�` (tabs and
    line ends stay)."""
    text = "–" if value is None else str(value)
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return printable(cut, keep="\t\n")


def plotly_text(value: Any, limit: int = 60) -> str:
    """A text for a plot. plotly draws a few tags (links among them) inside texts, so that these are escaped;
    a `%{…}` would be read as a template, so that it is broken up."""
    text = " ".join(shown(value, limit).split())
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "% {")

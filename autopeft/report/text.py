"""Figures as the tables write them."""

from __future__ import annotations

import math

from autopeft.display import counted, mean_sd, number, percent, score, size

__all__ = ["counted", "duration", "limits_text", "mean_sd", "number", "percent", "score", "size"]


def duration(seconds: float | None) -> str:
    """`9 s`, `3 min 05 s`, `2 h 10 min`; `–` where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def limits_text(limits: tuple[int, int]) -> str:
    """A budget in parameters: `at most 113,566`, or `1,000 to 113,566` with a lower limit."""
    low, high = limits
    return f"{low:,} to {high:,}" if low else f"at most {high:,}"

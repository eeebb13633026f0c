"""Numbers as the tables write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["duration", "limits_text", "mean_sd", "number", "percent", "score"]


def number(value: float | None) -> str:
    """A count with thousands separators; `–` for `None`, `unbounded` for infinity."""
    if value is None:
        return "–"
    return "unbounded" if math.isinf(value) else f"{int(value):,}"


def percent(share: float | None, digits: int = 3) -> str:
    """A fraction as a percentage; cut, never rounded up, so that a share under a limit reads so."""
    if share is None or not math.isfinite(share):
        return "–"
    step = 10.0**digits
    return f"{math.floor(share * 100 * step + 1e-9) / step:.{digits}f} %"


def score(value: float | None) -> str:
    """A score in its natural unit with four digits; `–` where there is none or it is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def mean_sd(values: Sequence[float]) -> str:
    """`0.8123 ± 0.0041` (sample standard deviation) of several seeds; a single seed says that it is one."""
    if not values:
        return "–"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4f} (one seed)"
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return f"{mean:.4f} ± {sd:.4f}"


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

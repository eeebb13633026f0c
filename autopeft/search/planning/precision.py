"""The precision in which finalists and baselines are trained and scored on *test*."""

from __future__ import annotations

from autopeft.effort import LARGE

__all__ = ["final_precision"]


def final_precision(asked: str, trials: str | None, parameters: int) -> str:
    """`fp32` or `bf16`.

    Args:
        asked: one of these, or `auto`: fp32, and that of the trials for a large backbone.
        trials: that of the trials; `auto` or `None` where a probe has yet to find it, which counts as fp32.
        parameters: of the backbone.
    """
    if asked != "auto":
        return asked
    return trials if parameters >= LARGE and trials not in (None, "auto") else "fp32"

"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from typing import Literal

from autopeft.errors import UsageError, near

__all__ = ["SCHEDULES", "Schedule", "factor", "warmup_steps"]

Schedule = Literal["linear", "cosine", "constant"]
SCHEDULES = ("linear", "cosine", "constant")


def warmup_steps(share: float, total: int) -> int:
    """Steps of warm-up: a share of all steps, rounded down; at least one step runs at the full rate."""
    return min(int(share * total), total - 1)


def factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """What the learning rate of each group is multiplied by at `step` (0-based) of `total`.

    Warm-up climbs linearly through 1/(w+1) … w/(w+1); the step after it runs at 1. Then `linear` falls to
    1/(total − w) at the last step, `cosine` follows ½(1 + cos πt), `constant` stays. No step runs at zero,
    so none is wasted.

    Raises:
        UsageError: the schedule is unknown.
    """
    if schedule not in SCHEDULES:
        raise UsageError(
            f"A schedule is one of {', '.join(SCHEDULES)}, but got {schedule!r}.{near(schedule, SCHEDULES)}"
        )
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / (total - warmup)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

"""Which rows of a split a phase trains on, and which it holds out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autopeft.tasks.encode import EncodedSplit
from autopeft.training.errors import PhaseError
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan

__all__ = ["Rows", "rows_apart", "rows_of"]

Rows = NDArray[np.int64]
_HELD_OUT = 2  # beside the plan's seed, which alone draws the plan's share


def rows_of(split: EncodedSplit, plan: TrainingPlan) -> Rows | None:
    """The plan's share of a split's rows; `None` for all of them."""
    if plan.train_share == 1:
        return None
    count = max(1, round(plan.train_share * len(split)))
    return np.random.default_rng(plan.seed).permutation(len(split))[:count]


def rows_apart(split: EncodedSplit, plan: TrainingPlan, phase: Phase) -> tuple[Rows | None, Rows | None]:
    """The rows of the plan's share that a phase trains on, and those that it holds out.

    Both are `None` for a phase that holds nothing out: it trains on all of the share. Else there is at least
    one of each.

    Raises:
        PhaseError: there are not enough rows.
    """
    if not phase.held_out:
        return None, None
    share = rows_of(split, plan)
    rows = np.arange(len(split)) if share is None else share
    if len(rows) < 2:
        raise PhaseError(f"Phase {phase.name!r} holds rows out and needs at least 2, but has {len(rows)}.")
    drawn = np.random.default_rng((plan.seed, _HELD_OUT)).permutation(rows)
    count = min(max(1, round(phase.held_out * len(rows))), len(rows) - 1)
    return drawn[count:], drawn[:count]

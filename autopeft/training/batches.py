"""Which rows of a split a phase trains on, in which order, and which it holds out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.errors import UsageError
from autopeft.tasks.encode import EncodedSplit
from autopeft.training.errors import PhaseError
from autopeft.training.forward import Forward
from autopeft.training.phases import Phase
from autopeft.training.plan import TrainingPlan

__all__ = ["Rows", "batch_stream", "held_out_rows", "share_of_rows"]

Rows = NDArray[np.int64]
_HELD_OUT = 2  # beside the plan's seed, which alone draws the plan's share


def share_of_rows(split: EncodedSplit, plan: TrainingPlan) -> Rows | None:
    """The plan's share of a split's rows; `None` for all of them."""
    if plan.train_share == 1:
        return None
    count = max(1, round(plan.train_share * len(split)))
    return np.random.default_rng(plan.seed).permutation(len(split))[:count]


def held_out_rows(split: EncodedSplit, plan: TrainingPlan, phase: Phase) -> tuple[Rows | None, Rows | None]:
    """The rows of the plan's share that a phase trains on, and those that it holds out.

    Both are `None` for a phase that holds nothing out: it trains on all of the share. Else there is at least
    one of each.

    Raises:
        PhaseError: there are not enough rows.
    """
    if not phase.held_out:
        return None, None
    share = share_of_rows(split, plan)
    rows = np.arange(len(split)) if share is None else share
    if len(rows) < 2:
        raise PhaseError(f"Phase {phase.name!r} holds rows out and needs at least 2, but has {len(rows)}.")
    drawn = np.random.default_rng((plan.seed, _HELD_OUT)).permutation(rows)
    count = min(max(1, round(phase.held_out * len(rows))), len(rows) - 1)
    return drawn[count:], drawn[:count]


def batch_stream(
    split: EncodedSplit,
    plan: TrainingPlan,
    device: torch.device,
    forward: Forward,
    *,
    since: int = 0,
    skip: int = 0,
    among: Rows | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Batches for `forward` without end: every row of the plan's share, or of those `among`, once in each
    epoch, in a new order each time. `since` is the step at which this share began; the first `skip` batches
    are left out.

    Raises:
        UsageError: the split has no rows or no labels.
    """
    if not len(split) or split.labels is None:
        raise UsageError("Training needs labelled rows, but the split has none.")
    among = share_of_rows(split, plan) if among is None else among
    rows = len(split) if among is None else len(among)
    epoch, skip = divmod(skip, -(-rows // plan.batch_size))
    entropy = (plan.seed, since) if since else (plan.seed,)
    while True:
        order = int(np.random.SeedSequence((*entropy, epoch)).generate_state(1)[0])
        yield from forward.batches(
            split, plan.batch_size, shuffle=True, seed=order, device=device, among=among, skip=skip
        )
        epoch, skip = epoch + 1, 0

"""The rows that a model finds hardest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import Tensor

from autopeft.errors import AutoPEFTError

__all__ = ["hardest_rows"]

Batch = dict[str, Tensor]


def hardest_rows(
    batches: Iterable[Batch], losses: Callable[[Batch], Tensor], *, share: float, least: int, most: int
) -> list[Batch]:
    """The rows of largest loss, the hardest first, each as a batch of its own.

    They are `share` times as many as there are batches, from `least` to `most`, and all rows but one at most.
    Of equal losses the first rows are taken. Memory is that of `most` rows and of one batch.

    Args:
        batches: each row once.
        losses: gives the loss of each row of a batch.

    Raises:
        AutoPEFTError: the loss of a row is not finite.
    """
    kept: list[tuple[float, Batch]] = []
    count = rows = 0
    for batch in batches:
        found = losses(batch).tolist()
        if not all(map(math.isfinite, found)):
            raise AutoPEFTError(
                "The hardest rows cannot be found: the loss of a row is not finite; use fp32 and check the "
                "training data."
            )
        count, rows = count + 1, rows + len(found)
        threshold = kept[-1][0] if len(kept) == most else float("-inf")
        new = [(loss, _row(batch, i)) for i, loss in enumerate(found) if loss > threshold]
        kept = sorted([*kept, *new], key=lambda pair: -pair[0])[:most]  # stable: the first ones stay in front
    wanted = min(max(int(share * count), least), most, max(rows - 1, 1))
    return [row for _, row in kept[:wanted]]


def _row(batch: Batch, i: int) -> Batch:
    return {name: value[i : i + 1].clone() for name, value in batch.items()}

"""The best of many scores, exactly k of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["TopEntries", "top_entries"]

_CHUNK = 1 << 22  # scores that are looked at together


class TopEntries:
    """Keeps the k largest of the scores that it is shown, tensor by tensor, and where they were.

    Of equal scores the first ones are kept, so that the choice does not depend on device or algorithm. It
    sorts when k candidates have come together, so that many tensors cost few sorts. Memory is that of 2k
    scores and of some millions more.
    """

    def __init__(self, k: int) -> None:
        self._k, self._start = k, 0
        self._scores: Tensor | None = None
        self._positions = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def show(self, scores: Tensor) -> None:
        """Look at the scores of the next tensor.

        Raises:
            ValueError: a score is not finite.
        """
        for part in scores.detach().flatten().split(_CHUNK):
            self._show(part.float())

    def _show(self, flat: Tensor) -> None:
        if not bool(torch.isfinite(flat).all()):
            raise ValueError("Scores must be finite, but some are not.")
        shown, positions = len(flat), torch.arange(len(flat), device=flat.device)
        if self._k and self._scores is not None and len(self._scores) == self._k:
            # What comes later has to be better than the last one.
            positions = (flat > self._scores[-1]).nonzero()[:, 0]
            flat = flat[positions]
        self._waiting.append((flat, positions + self._start))
        self._start += shown
        if sum(len(part) for part, _ in self._waiting) >= self._k:
            self._sort()

    def _sort(self) -> None:
        """Take in what is waiting."""
        if not self._waiting:
            return
        flat = torch.cat([part for part, _ in self._waiting])
        known = flat.new_zeros(0) if self._scores is None else self._scores
        order = torch.sort(torch.cat([known, flat]), descending=True, stable=True)
        whole = torch.cat([self._positions.to(flat.device), *(places for _, places in self._waiting)])
        self._scores, self._positions = order.values[: self._k], whole[order.indices[: self._k]]
        self._waiting = []

    @property
    def positions(self) -> Tensor:
        """Positions (k,) in the concatenation of the flattened tensors, of the largest score first; fewer
        where fewer scores were shown."""
        self._sort()
        return self._positions


def top_entries(scores: Iterable[Tensor], k: int) -> Tensor:
    """Positions (k,) of the k largest scores in the concatenation of the flattened tensors, the largest
    first; see `TopEntries`."""
    best = TopEntries(k)
    for score in scores:
        best.show(score)
    return best.positions

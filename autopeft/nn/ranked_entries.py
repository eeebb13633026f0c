"""Entries of the backbone that are chosen by scores which calibration measures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from autopeft.errors import AutoPEFTError
from autopeft.nn.chosen_entries import ChosenEntries
from autopeft.nn.top_entries import top_entries
from autopeft.spec import TensorSpec

__all__ = ["RankedEntries", "ranked", "reach_of"]

_LEAST, _SHARE = 1 << 17, 32  # ranked of all entries, and of each tensor's: one in so many


def reach_of(k: int, total: int, least: int = _LEAST) -> int:
    """How many entries of `total` are ranked where k are kept: so many more that other k need the same."""
    count = max(k, least)
    return min(total, 1 << (count - 1).bit_length()) if count else 0


def ranked(scores: Iterable[Tensor], count: int, name: str) -> Tensor:
    """Positions of the `count` largest scores, the largest first (see `top_entries`).

    Raises:
        AutoPEFTError: some score is not finite; `name` is that of the method that measured.
    """
    try:
        return top_entries(scores, count)
    except ValueError as error:
        raise AutoPEFTError(
            f"{name} got gradients that are not finite; calibrate in fp32 and check the training data."
        ) from error


class RankedEntries(ChosenEntries):
    """Values at the k entries whose measured scores are the largest of all, or of their tensor's.

    What is measured ranks more entries than are kept, so that masks of many sizes share one ranking.

    Args:
        name: of the method, as messages call it.
        sizes: how many to choose in each tensor, k together; `None` chooses the k largest of all.
    """

    def __init__(
        self, tensors: Sequence[TensorSpec], k: int, name: str, sizes: Sequence[int] | None = None
    ) -> None:
        super().__init__(tensors, k)
        self.name = name
        self.sizes = [k] if sizes is None else list(sizes)
        self.whole = sizes is None

    @property
    def reach(self) -> list[int]:
        """How many entries are ranked: of all, or of each tensor. Part of what a measurement depends on."""
        if self.whole:
            return [reach_of(self.sizes[0], self.entries.total)]
        pairs = zip(self.sizes, self.entries.tensors, strict=True)
        return [reach_of(k, t.size, -(-t.size // _SHARE)) for k, t in pairs]

    def ranking(self, scores: Iterable[Tensor]) -> dict[str, Tensor]:
        """What `measure` returns of the scores of each tensor: the best positions (Σ reach,).

        Raises:
            AutoPEFTError: some score is not finite.
        """
        if self.whole:
            found = ranked(scores, self.reach[0], self.name)
        else:
            starts = [start for start, _ in self.entries.offsets.values()]
            each = zip(scores, self.reach, starts, strict=True)
            found = torch.cat([ranked([score], reach, self.name) + start for score, reach, start in each])
        return {"ranking": found if self.entries.total > torch.iinfo(torch.int32).max else found.int()}

    def settle(self, measured: Mapping[str, Tensor]) -> None:
        """Select the best entries; values return to zero."""
        self.entries.select(torch.cat(list(self._best(measured["ranking"]))).to(self.entries.index))
        nn.init.zeros_(self.entries.values)

    def _best(self, ranking: Tensor) -> Iterator[Tensor]:
        parts = [ranking] if self.whole else ranking.split(self.reach)
        for part, size in zip(parts, self.sizes, strict=True):
            yield part[:size]

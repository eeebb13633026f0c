"""A pool of samples, sorted by reward into bins of equal size (Quark)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from autopeft.errors import MethodError
from autopeft.method import Sample

__all__ = ["QuantilePool"]


class QuantilePool:
    """All samples so far, best first, in `count` bins: bin 0 is the best. What equal bins leave over is in
    the last one. Samples of equal reward stay in the order in which they came, and one whose reward is no
    finite number is dropped.

    Lu et al. 2022, arXiv:2205.13636, as the data pool of GXimingLu/IPA has it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.samples: list[Sample] = []

    def add(self, samples: Sequence[Sample]) -> None:
        """Put samples in, and sort all anew.

        Raises:
            MethodError: there are fewer samples than bins.
        """
        fresh = [sample for sample in samples if math.isfinite(sample.reward)]
        self.samples = sorted([*self.samples, *fresh], key=lambda sample: -sample.reward)
        if len(self.samples) < self.count:
            raise MethodError(
                f"{len(self.samples)} samples with a reward do not fill {self.count} bins; take fewer bins, "
                "or more rows to write to."
            )

    def bins(self) -> list[int]:
        """The bin of each sample."""
        size = len(self.samples) // self.count
        return [min(i // size, self.count - 1) for i in range(len(self.samples))]

    def batches(self, rows: int) -> Iterator[tuple[list[Sample], Tensor]]:
        """Samples with their bins (rows,) without end: each once in an epoch, in an order that torch's
        generator draws. What fills no batch at the end of an epoch is left out of it."""
        bins, size = self.bins(), min(rows, len(self.samples))
        while True:
            order = torch.randperm(len(bins)).tolist()
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                yield [self.samples[i] for i in chosen], torch.tensor([bins[i] for i in chosen])

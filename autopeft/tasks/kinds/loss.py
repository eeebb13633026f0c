"""What a kind of task minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

__all__ = ["Loss"]


class Loss(ABC):
    """What is minimised, exact over micro-batches.

    `total` is the undivided sum of the losses of some rows and `weight` what the sum over the whole batch is
    divided by, so that Σ total(micro) / weight(batch) is the loss of the batch.
    """

    @abstractmethod
    def total(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over what counts in these rows (rows, tokens, …), a scalar in fp32, differentiable.

        Args:
            logits: (rows, …), as `TaskKind.logits_of` gives them.
            labels: (rows, …), as the batch has them under `labels`.
        """

    @abstractmethod
    def weight(self, labels: Tensor) -> float:
        """What a batch's sum is divided by: its rows, its tokens, the sum of its rows' weights."""

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.total(logits, labels) / self.weight(labels)

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row alone, (rows,): its sum divided by its own weight."""
        rows = range(len(labels))
        return torch.stack([self.mean(logits[i : i + 1], labels[i : i + 1]) for i in rows])

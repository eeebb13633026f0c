"""What a kind of task minimises."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

__all__ = ["Loss", "floored_classes"]


class Loss(ABC):
    """What is minimised, exact over micro-batches.

    `total` is the undivided sum of the losses of some rows and `weight` what the sum over the whole batch is
    divided by, so that Σ total(micro) / weight(batch) is the loss of the batch.

    Attributes:
        in_units: whether predictions are numbers like the labels and the loss is in their unit's square, so
            that a head may begin at the labels' mean, in their unit.
    """

    in_units: ClassVar[bool] = False

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

    def floored(self, logits: Tensor, labels: Tensor) -> Tensor:
        """A constant answer in which nothing that the labels lack is less probable than so many can tell,
        half of one of them. Without a limit a fit drives it towards -∞, and other rows may have it.

        Args:
            logits: (outputs,), which fit the labels.
            labels: (rows, …), each of one answer.
        """
        return logits

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row alone, (rows,): its sum divided by its own weight."""
        rows = range(len(labels))
        return torch.stack([self.mean(logits[i : i + 1], labels[i : i + 1]) for i in rows])


def floored_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """See `Loss.floored`; of logits of classes and class indices (rows,)."""
    there = torch.bincount(labels, minlength=len(logits)) > 0
    least = logits[there].logsumexp(0) + math.log(0.5 / (len(labels) + len(logits) / 2))
    return torch.where(there, logits, logits.clamp_min(least))

"""Early stopping: when to end, and the best state to return to.

Scores count from when every module says that it is `settled` (see `autopeft.method.members`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BestState"]


class BestState:
    """Remembers parameters and buffers of the best score so far; of equal scores the earliest counts."""

    def __init__(self, tensors: Sequence[Tensor], patience: int) -> None:
        self.tensors = list(tensors)
        self.patience = patience
        self.best = float("-inf")
        self.waited = 0
        self._kept: list[Tensor] | None = None

    def update(self, score: float) -> bool:
        """Take in a score; whether `patience` scores in a row have brought no new best one."""
        if score > self.best:
            self.best, self.waited = score, 0
            self._kept = [t.detach().clone() for t in self.tensors]
        else:
            self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state of the best score back; without any score it stays."""
        if self._kept is not None:
            for tensor, kept in zip(self.tensors, self._kept, strict=True):
                tensor.copy_(kept)

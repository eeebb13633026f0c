"""Early stopping: when to end, and the best state to return to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["BestState"]


class BestState:
    """Remembers the parameters of the best score so far; of equal scores the earliest counts."""

    def __init__(self, parameters: Sequence[nn.Parameter], patience: int) -> None:
        self.parameters = list(parameters)
        self.patience = patience
        self.best = float("-inf")
        self.waited = 0
        self._kept: list[Tensor] | None = None

    def update(self, score: float) -> bool:
        """Take in a score; whether `patience` scores in a row have brought no new best one."""
        if score > self.best:
            self.best, self.waited = score, 0
            self._kept = [p.detach().clone() for p in self.parameters]
        else:
            self.waited += 1
        return self.waited >= self.patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters of the best score back; without any score they stay."""
        if self._kept is not None:
            for parameter, kept in zip(self.parameters, self._kept, strict=True):
                parameter.copy_(kept)

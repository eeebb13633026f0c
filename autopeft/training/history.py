"""How a training went, in as many points as a figure needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from autopeft.training.result import TrainResult

__all__ = ["History"]

_POINTS = 100


@dataclass(frozen=True)
class History:
    """What a run keeps of the course of a training.

    Attributes:
        losses: step and mean loss of the steps since the point before it, of at most 100 points.
        scores: step and score on *select*, of each score that was taken while it trained.
        phases: first step and name of each phase.
        first_loss, last_loss: mean over the first and the last tenth of the steps.
    """

    losses: tuple[tuple[int, float], ...] = ()
    scores: tuple[tuple[int, float], ...] = ()
    phases: tuple[tuple[int, str], ...] = ()
    first_loss: float | None = None
    last_loss: float | None = None

    @classmethod
    def of(cls, result: TrainResult, phases: Sequence[tuple[int, str]]) -> History:
        """The course of a training that has ended."""
        ends = np.unique(np.linspace(0, result.steps, min(_POINTS, result.steps) + 1).round().astype(int))
        losses = tuple((int(end), float(np.mean(result.losses[start:end]))) for start, end in pairwise(ends))
        return cls(losses, tuple(result.scores), tuple(phases), result.first_loss, result.final_loss)

    def to_dict(self) -> dict[str, Any]:
        """As a run's result holds it."""
        return {
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "losses": [list(point) for point in self.losses],
            "scores": [list(point) for point in self.scores],
            "phases": [list(point) for point in self.phases],
        }

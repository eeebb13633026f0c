"""The outcome of a training, and its course in as many points as a figure needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from autopeft.training.checkpoint import Checkpoint

__all__ = ["History", "TrainResult"]

_POINTS = 100


@dataclass
class TrainResult:
    """What came of a training.

    Attributes:
        losses: loss of every step, the modules' own terms included, and those before a pause.
        scores: (step, score on *select*) of every score taken while training, and before a pause.
        seconds: wall time.
        stopped: `done` after all steps, `asked` when `should_stop` said so, `patience` when scores had
            stopped rising, `paused` at `until`.
        micro_rows: rows that went through the model at once in the end.
        outputs: what each phase left, by name.
        step_seconds: of every step since it began or went on, loading of the batch left out (see
            `autopeft.training.metering`).
        memory: bytes at the peak, from calibration to conclusion; `None` where it cannot be measured.
        checkpoint: of a paused training, to go on from; `None` where it can only be started anew (modules
            with phases of their own).
    """

    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: Literal["done", "asked", "patience", "paused"] = "done"
    micro_rows: int = 0
    outputs: dict[str, Any] = field(default_factory=dict)
    step_seconds: list[float] = field(default_factory=list, repr=False)
    memory: int | None = None
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return len(self.losses)

    @property
    def step_time(self) -> float | None:
        """Median seconds of a step, the first left out where there are others; `None` without steps."""
        counted = self.step_seconds[1:] or self.step_seconds
        return float(np.median(counted)) if counted else None

    @property
    def first_loss(self) -> float:
        """Mean loss of the first tenth of the steps, at least one; NaN without steps."""
        return float(np.mean(self.losses[: max(1, len(self.losses) // 10)])) if self.losses else float("nan")

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps, at least one; NaN without steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 10) :])) if self.losses else float("nan")


@dataclass(frozen=True)
class History:
    """What a run keeps of the course of a training.

    Attributes:
        losses: step and mean loss of the steps since the point before it, of at most 100 points.
        scores: step and score on *select*, of each score that was taken while it trained.
        phases: first step and name of each phase.
        first_loss, last_loss: mean over the first and the last tenth of the steps; `None` without steps.
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
        first, last = (result.first_loss, result.final_loss) if result.steps else (None, None)
        return cls(losses, tuple(result.scores), tuple(phases), first, last)

    def to_dict(self) -> dict[str, Any]:
        """As a run's result holds it."""
        return {
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "losses": [list(point) for point in self.losses],
            "scores": [list(point) for point in self.scores],
            "phases": [list(point) for point in self.phases],
        }

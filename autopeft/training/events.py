"""What a training of a fixed recipe tells those who watch it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from autopeft.tasks.summary import DataSummary

__all__ = ["SilentTrainReporter", "TrainInfo", "TrainReporter", "Watch"]

_SMOOTHING = 0.9


@dataclass(frozen=True)
class TrainInfo:
    """What a display needs before the first step.

    Attributes:
        recipe, task, model: names.
        metric: name of the score, higher is better.
        steps: of the whole training.
        run: path of the run folder.
        data: what the rows are like.
    """

    recipe: str
    task: str
    model: str
    metric: str
    steps: int
    run: str
    data: DataSummary


class TrainReporter(Protocol):
    """Watches a training. All calls come from the thread that trains, one at a time.

    `on_phase` comes where a phase begins, with its steps: those of a method that trains in phases by their
    names, else `training`; `calibration`, `conclusion` and `scoring` have 0 steps. `on_step` comes after each
    step, counted from 1 over the whole training, with the loss smoothed and the estimated seconds until the
    last step, `None` until a pace is known. `on_score` comes with each score on *select* while it trains.
    """

    def on_start(self, info: TrainInfo) -> None: ...

    def on_phase(self, name: str, steps: int) -> None: ...

    def on_step(self, step: int, loss: float, remaining: float | None) -> None: ...

    def on_score(self, step: int, score: float) -> None: ...


class SilentTrainReporter:
    """Shows nothing; a base for reporters that want some of the events."""

    def on_start(self, info: TrainInfo) -> None:
        """Ignore the event."""

    def on_phase(self, name: str, steps: int) -> None:
        """Ignore the event."""

    def on_step(self, step: int, loss: float, remaining: float | None) -> None:
        """Ignore the event."""

    def on_score(self, step: int, score: float) -> None:
        """Ignore the event."""


class Watch:
    """Hands what the loop says to a reporter, with the loss smoothed and the time left.

    The loss is an exponential mean of the phase's steps, of which the first count in full. The time left
    follows from the pace of the phase since its first step, which may take longer than the others.

    Attributes:
        phases: the first step (1-based) and the name of each phase that has steps.
    """

    def __init__(
        self, reporter: TrainReporter, steps: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._reporter, self._steps, self._clock = reporter, steps, clock
        self.phases: list[tuple[int, str]] = []
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        self._mean = self._weight = 0.0
        self._first: tuple[int, float] | None = None

    def phase(self, name: str, steps: int = 0) -> None:
        """A phase begins."""
        self._begin()
        if steps:
            self.phases.append((self._taken + 1, name))
        self._reporter.on_phase(name, steps)

    def step(self, step: int, loss: float) -> None:
        """A step was taken."""
        self._taken = step
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self._reporter.on_step(step, self._mean / self._weight, self._remaining(step))

    def score(self, step: int, score: float) -> None:
        """A score on *select* was taken."""
        self._reporter.on_score(step, score)

    def _remaining(self, step: int) -> float | None:
        now = self._clock()
        if self._first is None:
            self._first = step, now
        first, began = self._first
        return None if step == first else (now - began) / (step - first) * (self._steps - step)

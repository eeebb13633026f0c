from __future__ import annotations

from typing import Any

import pytest

from autopeft.training.events import SilentTrainReporter, Watch


class Told(SilentTrainReporter):
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_phase(self, name: str, steps: int) -> None:
        self.events.append((name, steps))

    def on_step(self, step: int, loss: float, remaining: float | None) -> None:
        self.events.append((step, loss, remaining))

    def on_score(self, step: int, score: float) -> None:
        self.events.append((step, score))


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_loss_is_smoothed_and_the_first_steps_count_in_full() -> None:
    told = Told()
    watch = Watch(told, 10)
    for step, loss in enumerate((4.0, 1.0, 1.0), start=1):
        watch.step(step, loss)
    losses = [event[1] for event in told.events]
    assert losses[0] == pytest.approx(4.0)
    assert losses[1] == pytest.approx((0.9 * 4 + 1) / 1.9)
    assert losses[2] == pytest.approx((0.81 * 4 + 0.9 + 1) / 2.71)


def test_the_time_left_follows_from_the_pace_since_the_first_step() -> None:
    told, clock = Told(), Clock()
    watch = Watch(told, 10, clock)
    for step, now in ((1, 60.0), (2, 62.0), (3, 66.0)):  # the first one has stored what later ones use
        clock.now = now
        watch.step(step, 1.0)
    assert [event[2] for event in told.events] == [None, pytest.approx(2 * 8), pytest.approx(3 * 7)]


def test_each_phase_has_a_pace_and_a_loss_of_its_own() -> None:
    told, clock = Told(), Clock()
    watch = Watch(told, 6, clock)
    watch.phase("calibration")
    watch.phase("search of a", 3)
    for step, loss in ((1, 9.0), (2, 9.0), (3, 9.0)):
        clock.now += 10.0
        watch.step(step, loss)
    watch.phase("retrain of a", 3)
    for step in (4, 5):
        clock.now += 1.0
        watch.step(step, 2.0)
    watch.score(5, 0.5)
    assert watch.phases == [(1, "search of a"), (4, "retrain of a")]
    assert told.events[:2] == [("calibration", 0), ("search of a", 3)]
    assert told.events[-4:-1] == [
        ("retrain of a", 3),
        (4, pytest.approx(2.0), None),
        (5, pytest.approx(2.0), 1.0),
    ]
    assert told.events[-1] == (5, 0.5)

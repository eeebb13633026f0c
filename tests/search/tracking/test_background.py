from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.tracking import MemoryTracker

from autopeft.search.tracking import background as module
from autopeft.search.tracking.background import BackgroundTracker
from autopeft.search.tracking.entry import TrackedRun

ENTRY = TrackedRun("trial-0", {})


def test_calls_are_made_in_order_in_one_other_thread_and_then_it_is_closed() -> None:
    tracker, threads = MemoryTracker(), set[int]()
    background = BackgroundTracker("memory", tracker.opened)
    for step in range(50):
        background.tell(lambda t, step=step: t.report(ENTRY, step, {}))
        background.tell(lambda t: threads.add(threading.get_ident()))
    background.finish()
    assert background.wait(10)
    assert background.error is None
    assert tracker.closed
    assert [call[2] for call in tracker.calls if call[0] == "report"] == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("failing", ["open", "start"])
def test_what_fails_is_told_in_one_line_and_nothing_is_called_any_more(failing: str) -> None:
    tracker = MemoryTracker(failing=failing)
    background = BackgroundTracker("memory", tracker.opened)
    background.tell(lambda t: t.start(ENTRY))
    assert background.wait(10)
    assert background.error == "ConnectionError: the server is gone"
    background.tell(lambda t: t.end(ENTRY, "complete"))
    background.finish()
    assert background.wait(10)
    assert not any(call[0] == "end" for call in tracker.calls)


def test_the_end_of_ray_is_a_failure_too() -> None:
    @contextmanager
    def ending() -> Iterator[MemoryTracker]:
        raise SystemExit
        yield MemoryTracker()

    background = BackgroundTracker("memory", ending)
    assert background.wait(10)
    assert background.error == "SystemExit"


def test_a_slow_tracker_loses_steps_and_keeps_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKLOG", 5)
    tracker, gate = MemoryTracker(), threading.Event()
    background = BackgroundTracker("memory", tracker.opened)
    background.tell(lambda t: gate.wait(10) and None)
    for step in range(100):
        background.tell(lambda t, step=step: t.report(ENTRY, step, {}), minor=True)
    background.tell(lambda t: t.end(ENTRY, "complete"))
    background.finish()
    assert not background.wait(0.01)
    gate.set()
    assert background.wait(10)
    assert sum(call[0] == "report" for call in tracker.calls) <= 7
    assert tracker.calls[-1] == ("end", "trial-0", "complete")

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.tracking import MemoryTracker

from autopeft.search.tracking import background as module
from autopeft.search.tracking.background import Courier
from autopeft.search.tracking.entry import Entry

ENTRY = Entry("trial-0", {})


def test_calls_are_made_in_order_in_one_other_thread_and_then_it_is_closed() -> None:
    tracker, threads = MemoryTracker(), set[int]()
    courier = Courier("memory", tracker.opened)
    for step in range(50):
        courier.tell(lambda t, step=step: t.report(ENTRY, step, {}))
        courier.tell(lambda t: threads.add(threading.get_ident()))
    courier.finish()
    assert courier.wait(10)
    assert courier.error is None
    assert tracker.closed
    assert [call[2] for call in tracker.calls if call[0] == "report"] == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("failing", ["open", "start"])
def test_what_fails_is_told_in_one_line_and_nothing_is_called_any_more(failing: str) -> None:
    tracker = MemoryTracker(failing=failing)
    courier = Courier("memory", tracker.opened)
    courier.tell(lambda t: t.start(ENTRY))
    assert courier.wait(10)
    assert courier.error == "ConnectionError: the server is gone"
    courier.tell(lambda t: t.end(ENTRY, "complete"))
    courier.finish()
    assert courier.wait(10)
    assert not any(call[0] == "end" for call in tracker.calls)


def test_the_end_of_ray_is_a_failure_too() -> None:
    @contextmanager
    def ending() -> Iterator[MemoryTracker]:
        raise SystemExit
        yield MemoryTracker()

    courier = Courier("memory", ending)
    assert courier.wait(10)
    assert courier.error == "SystemExit"


def test_a_slow_tracker_loses_steps_and_keeps_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKLOG", 5)
    tracker, gate = MemoryTracker(), threading.Event()
    courier = Courier("memory", tracker.opened)
    courier.tell(lambda t: gate.wait(10) and None)
    for step in range(100):
        courier.tell(lambda t, step=step: t.report(ENTRY, step, {}), minor=True)
    courier.tell(lambda t: t.end(ENTRY, "complete"))
    courier.finish()
    assert not courier.wait(0.01)
    gate.set()
    assert courier.wait(10)
    assert sum(call[0] == "report" for call in tracker.calls) <= 7
    assert tracker.calls[-1] == ("end", "trial-0", "complete")

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from autopeft.search.execution import driver_thread as relay_module
from autopeft.search.execution.driver_thread import Relay
from autopeft.search.execution.health import RayEndedError


def nothing() -> None:
    pass


def test_calls_are_made_in_the_first_thread_one_after_the_other() -> None:
    first, seen = threading.get_ident(), list[tuple[int, int]]()

    def note(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number * 2

    def work() -> None:
        assert threading.get_ident() != first
        assert [relay.call(note, i) for i in range(5)] == [0, 2, 4, 6, 8]

    with Relay() as relay:
        relay.run(work, nothing)
    assert seen == [(i, first) for i in range(5)]


def test_what_a_call_raises_is_raised_where_it_was_made() -> None:
    def fail() -> None:
        raise KeyError("here")

    def work() -> None:
        with pytest.raises(KeyError, match="here"):
            relay.call(fail)
        raise OSError("of the work")

    with Relay() as relay, pytest.raises(OSError, match="of the work"):
        relay.run(work, nothing)


def test_a_thread_that_ends_by_itself_is_no_silence() -> None:
    def work() -> None:
        raise SystemExit(0)

    with Relay() as relay, pytest.raises(RuntimeError, match="SystemExit"):
        relay.run(work, nothing)


def ended(after: int) -> Callable[[], None]:
    """What is called in between, until it finds that Ray is gone."""
    left = [after]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RayEndedError("gone")

    return check


def test_the_first_thread_leaves_a_second_one_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "_JOIN_SECONDS", 0.5)
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(RayEndedError), Relay() as relay:
        relay.run(never.wait, ended(2))  # type: ignore[arg-type]
    assert time.monotonic() - start < 5
    assert relay._thread is not None
    assert relay._thread.is_alive()
    never.set()


@pytest.mark.parametrize("how", ["pause", "call"])
def test_an_abandoned_thread_rests_until_the_context_is_left_and_then_ends(how: str) -> None:
    reached, went_on = list[str](), list[str]()

    def work() -> None:
        while True:
            reached.append("turn")
            if how == "pause":
                relay.pause()
                time.sleep(0.05)
            else:
                relay.call(nothing)
            went_on.append("turn")

    with Relay() as relay:
        with pytest.raises(RayEndedError):
            relay.run(work, ended(3))
        thread = relay._thread
        assert thread is not None
        time.sleep(1.2)
        turns = len(went_on)
        time.sleep(0.3)
        assert thread.is_alive(), "it must touch nothing while Ray is taken down"
        assert len(went_on) == turns
    assert not thread.is_alive()
    assert reached


def test_a_stranded_thread_rests_for_ever() -> None:
    def work() -> None:
        while True:
            relay.call(nothing)

    with Relay() as relay:
        with pytest.raises(RayEndedError):
            relay.run(work, ended(1))
        relay.strand()
    assert relay._thread is not None
    time.sleep(0.7)
    assert relay._thread.is_alive()


def test_ray_ending_within_a_call_ends_the_run_at_once() -> None:
    def settle() -> None:
        raise RayEndedError("gone")

    went_on = []

    def work() -> None:
        relay.call(settle)
        went_on.append("on")

    with Relay() as relay, pytest.raises(RayEndedError):
        relay.run(work, nothing)
    assert went_on == []

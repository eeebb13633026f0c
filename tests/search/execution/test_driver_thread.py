from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from autopeft.search.execution import driver_thread as driver_module
from autopeft.search.execution.driver_thread import DriverThread
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
        assert [driver.call(note, i) for i in range(5)] == [0, 2, 4, 6, 8]

    with DriverThread() as driver:
        driver.run(work, nothing)
    assert seen == [(i, first) for i in range(5)]


def test_what_a_call_raises_is_raised_where_it_was_made() -> None:
    def fail() -> None:
        raise KeyError("here")

    def work() -> None:
        with pytest.raises(KeyError, match="here"):
            driver.call(fail)
        raise OSError("of the work")

    with DriverThread() as driver, pytest.raises(OSError, match="of the work"):
        driver.run(work, nothing)


def test_a_thread_that_ends_by_itself_is_no_silence() -> None:
    def work() -> None:
        raise SystemExit(0)

    with DriverThread() as driver, pytest.raises(RuntimeError, match="SystemExit"):
        driver.run(work, nothing)


def ended(after: int) -> Callable[[], None]:
    """What is called in between, until it finds that Ray is gone."""
    left = [after]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RayEndedError("gone")

    return check


def test_the_first_thread_leaves_a_second_one_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "_JOIN_SECONDS", 0.5)
    never = threading.Event()
    with pytest.raises(RayEndedError), DriverThread() as driver:
        driver.run(never.wait, ended(2))  # type: ignore[arg-type]
    assert driver._thread is not None
    assert driver._thread.is_alive()
    never.set()


@pytest.mark.parametrize("how", ["pause", "call"])
def test_an_abandoned_thread_rests_until_the_context_is_left_and_then_ends(how: str) -> None:
    reached, went_on = list[str](), list[str]()

    def work() -> None:
        while True:
            reached.append("turn")
            if how == "pause":
                driver.pause()
                time.sleep(0.05)
            else:
                driver.call(nothing)
            went_on.append("turn")

    with DriverThread() as driver:
        with pytest.raises(RayEndedError):
            driver.run(work, ended(3))
        thread = driver._thread
        assert thread is not None
        time.sleep(1.2)
        turns = len(went_on)
        time.sleep(0.3)
        assert thread.is_alive(), "it must touch nothing while Ray is taken down"
        assert len(went_on) == turns
    assert not thread.is_alive()
    assert reached


def test_an_abandoned_thread_rests_for_ever() -> None:
    def work() -> None:
        while True:
            driver.call(nothing)

    with DriverThread() as driver:
        with pytest.raises(RayEndedError):
            driver.run(work, ended(1))
        driver.abandon()
    assert driver._thread is not None
    time.sleep(0.7)
    assert driver._thread.is_alive()


def test_ray_ending_within_a_call_ends_the_run_at_once() -> None:
    def settle() -> None:
        raise RayEndedError("gone")

    went_on = []

    def work() -> None:
        driver.call(settle)
        went_on.append("on")

    with DriverThread() as driver, pytest.raises(RayEndedError):
        driver.run(work, nothing)
    assert went_on == []

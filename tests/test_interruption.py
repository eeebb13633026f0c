from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from autopeft import interruption
from autopeft.interruption import Terminated, exit_code, forget, heeded, remind, sentence, terminable


class Source:
    """Something that goes on for `calls` interruptions."""

    def __init__(self, calls: int = 1) -> None:
        self.left, self.interrupted = calls, 0

    def interrupt(self) -> None:
        self.interrupted += 1

    def stopped(self) -> bool:
        return self.interrupted >= self.left


def send(number: int, wait: float = 0.01) -> None:
    os.kill(os.getpid(), number)
    time.sleep(wait)  # the handler is called before the next line is


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in handled]
    forget()
    yield
    assert [signal.getsignal(number) for number in handled] == before


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def passes(self, seconds: float) -> None:
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(interruption, "time", made)
    return made


def test_the_first_ctrl_c_interrupts_and_the_second_ends(clock: Clock) -> None:
    source = Source()
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGINT)
        assert source.interrupted == 1
        clock.passes(0.5)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert source.interrupted == 1
    assert (exit_code(), sentence()) == (130, "interrupted.")


def test_while_there_is_grace_a_second_ctrl_c_ends_it(clock: Clock) -> None:
    source = Source(calls=2)
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGINT)
        clock.passes(0.5)
        send(signal.SIGINT)
        assert source.interrupted == 2
        clock.passes(0.5)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_key_that_is_held_down_is_pressed_once(clock: Clock) -> None:
    source = Source()
    with heeded(source.interrupt, source.stopped):
        for _ in range(200):
            send(signal.SIGINT, wait=0.0)
            clock.passes(0.02)
    assert source.interrupted == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_signal_ends_is_put_away_in_peace_for_a_while(clock: Clock, number: int) -> None:
    """Neither signal hinders it, whichever came first, until it takes too long."""
    with terminable():
        with pytest.raises(KeyboardInterrupt):
            send(number)
        for other in (signal.SIGINT, signal.SIGTERM):
            clock.passes(7.0)
            send(other)
        clock.passes(2.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_what_a_second_ctrl_c_ends_is_put_away_in_peace_too(clock: Clock) -> None:
    source = Source()
    with terminable():
        with heeded(source.interrupt, source.stopped):
            send(signal.SIGINT)
            clock.passes(0.5)
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
            clock.passes(0.5)
            send(signal.SIGINT)
        send(signal.SIGINT)


def test_a_command_that_goes_on_hears_the_next_one(clock: Clock) -> None:
    """As a chat does when Ctrl-C has stopped an answer."""
    with terminable():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                send(signal.SIGINT)
            forget()
        with pytest.raises(Terminated):
            send(signal.SIGTERM)
        assert exit_code() == 143


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    """Shells start so what runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminable():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_sigterm_interrupts_too_and_has_an_exit_code_of_its_own() -> None:
    source = Source()
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGTERM)
    assert source.interrupted == 1
    assert (exit_code(), sentence()) == (143, "interrupted by SIGTERM.")


def test_an_echo_of_sigterm_is_none(clock: Clock) -> None:
    source = Source(calls=9)
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGTERM)
        clock.passes(1.0)
        send(signal.SIGTERM)
        assert source.interrupted == 1
        clock.passes(3.0)
        send(signal.SIGTERM)
        assert source.interrupted == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_interrupted_may_write_its_results(clock: Clock, number: int) -> None:
    """A second signal after the trials does not end that, however long they took to end."""
    source = Source()
    with terminable():
        with heeded(source.interrupt, source.stopped):
            send(number)
            clock.passes(60.0)
        clock.passes(10.0)
        send(number)
    assert source.interrupted == 1


def test_a_new_command_begins_anew() -> None:
    with terminable(), pytest.raises(Terminated):
        send(signal.SIGTERM)
    with terminable():
        assert exit_code() == 130
        with pytest.raises(Terminated):
            send(signal.SIGTERM)


def test_a_reminder_is_heard_where_the_main_thread_waits() -> None:
    source = Source(calls=9)
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGTERM)
        reminding = threading.Timer(0.2, remind)
        reminding.start()
        time.sleep(0.6)
        reminding.join()
    assert source.interrupted == 2


def test_other_threads_leave_signals_alone() -> None:
    before, failed = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        source = Source()
        try:
            with terminable(), heeded(source.interrupt, source.stopped):
                assert signal.getsignal(signal.SIGINT) is before
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_signal_after_the_command_does_not_change_how_the_process_ends_unless_it_hangs(
    clock: Clock, interrupted: bool
) -> None:
    came: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: came.append(number)) for number in handled]
    try:
        with contextlib.suppress(Terminated), terminable(last=True):
            if interrupted:
                send(signal.SIGTERM)
        for number in handled:
            send(number)
        assert came == []
        clock.passes(20.0)
        for number in (*handled, *handled):
            send(number)
        assert came == [*handled, *handled]
    finally:
        atexit.unregister(interruption._ignore)
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_command_within_a_process_leaves_the_handlers_as_they_were(interrupted: bool) -> None:
    """`_as_before` looks at them."""
    with contextlib.suppress(KeyboardInterrupt), terminable():
        if interrupted:
            send(signal.SIGINT)

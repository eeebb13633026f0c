from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from autopeft import interruption
from autopeft.interruption import Terminated, exit_code, heeded, remind, sentence, terminable


class Source:
    """Something that goes on for `calls` interruptions."""

    def __init__(self, calls: int = 1) -> None:
        self.left, self.interrupted = calls, 0

    def interrupt(self) -> None:
        self.interrupted += 1

    def stopped(self) -> bool:
        return self.interrupted >= self.left


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # the handler is called before the next line is


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in handled]
    with terminable():  # begins anew
        pass
    yield
    if interruption._Heard.terminated is not None:  # its echo is waited for
        signal.signal(signal.SIGTERM, before[1])
    assert [signal.getsignal(number) for number in handled] == before


def test_the_first_ctrl_c_interrupts_and_the_second_ends() -> None:
    source = Source()
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGINT)
        assert source.interrupted == 1
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert source.interrupted == 1
    assert (exit_code(), sentence()) == (130, "interrupted.")


def test_while_there_is_grace_a_second_ctrl_c_ends_it() -> None:
    source = Source(calls=2)
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert source.interrupted == 2
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_sigterm_interrupts_too_and_has_an_exit_code_of_its_own() -> None:
    source = Source()
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGTERM)
    assert source.interrupted == 1
    assert (exit_code(), sentence()) == (143, "interrupted by SIGTERM.")


def test_an_echo_of_sigterm_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(calls=9)
    with heeded(source.interrupt, source.stopped):
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert source.interrupted == 1
        monkeypatch.setattr(interruption, "_ECHO_SECONDS", 0.0)
        send(signal.SIGTERM)
        assert source.interrupted == 2


def test_sigterm_leaves_a_command_as_ctrl_c_does_and_its_echo_does_not_hinder_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tidied = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            send(signal.SIGTERM)
            tidied.append(True)
            raise

    with terminable():
        with pytest.raises(Terminated):
            work()
        assert tidied
        assert exit_code() == 143
        monkeypatch.setattr(interruption, "_END_SECONDS", 0.0)
        with pytest.raises(Terminated):
            send(signal.SIGTERM)


def test_what_was_interrupted_may_write_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second SIGTERM after the trials does not end that."""
    monkeypatch.setattr(interruption, "_ECHO_SECONDS", 0.0)
    source = Source()
    with terminable():
        with heeded(source.interrupt, source.stopped):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
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


def test_an_echo_after_the_command_does_not_end_the_process_a_later_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    came: list[int] = []
    outer = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with pytest.raises(Terminated), terminable():
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert came == []
        monkeypatch.setattr(interruption, "_ECHO_SECONDS", 0.0)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert came == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, outer)


def test_a_command_that_was_not_interrupted_leaves_the_handler_as_it_was() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with terminable():
        pass
    assert signal.getsignal(signal.SIGTERM) == before

"""Ctrl-C and SIGTERM: who hears of them, and which exit code they lead to.

A command of the command line ends by either, wherever it is: SIGTERM, which schedulers send, raises
`Terminated`, as Ctrl-C raises `KeyboardInterrupt`. A search that has trials running does not end there and
then: inside `heeded` it is told, so that it can write its results.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["Terminated", "exit_code", "heeded", "remind", "sentence", "terminable"]

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

# `timeout` and some schedulers send SIGTERM to the process and to its group, so that it comes twice.
_ECHO_SECONDS = 2.0
# What was begun at the first one, such as writing the results, may go on so long before a second one ends it.
_END_SECONDS = 15.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever tidies up after Ctrl-C does so after this too."""


class _Heard:
    """What has come so far in this command: the signal that came first, and when SIGTERM came last."""

    number: int | None = None
    terminated: float | None = None


def exit_code() -> int:
    """The exit code of a command that was interrupted, as shells have it: 143 by SIGTERM, 130 by Ctrl-C."""
    return 128 + (_Heard.number or signal.SIGINT)


def sentence() -> str:
    """What a command says that was interrupted."""
    return "interrupted by SIGTERM." if _Heard.number == signal.SIGTERM else "interrupted."


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` at SIGTERM inside the block; elsewhere than in the main thread nothing changes.

    Once it has come, its echo does not end the process after the block either: the exit code stays its own.
    """
    _Heard.number = _Heard.terminated = None

    def end(number: int, frame: FrameType | None) -> None:
        if _is_new(number, _END_SECONDS):
            raise Terminated

    with _handlers({signal.SIGTERM: end}, after=_unless_echo):
        yield


def _unless_echo(old: Handler) -> Handler:
    """The handler of before, for any SIGTERM but one that follows another within seconds."""
    if _Heard.terminated is None:
        return old

    def late(number: int, frame: FrameType | None) -> None:
        if _is_new(number, _ECHO_SECONDS):
            signal.signal(number, old)
            signal.raise_signal(number)

    return late


@contextlib.contextmanager
def heeded(interrupt: Callable[[], None], stopped: Callable[[], bool]) -> Iterator[None]:
    """Call `interrupt` at Ctrl-C and SIGTERM inside the block.

    A Ctrl-C that comes when what goes on is `stopped` already ends the process as usual. Elsewhere than in
    the main thread nothing changes.
    """

    def tell(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and stopped():
            raise KeyboardInterrupt
        if _is_new(number, _ECHO_SECONDS):
            interrupt()

    with _handlers({signal.SIGINT: tell, signal.SIGTERM: tell}):
        yield


def remind() -> None:
    """From another thread, let the main thread hear of SIGTERM, also where it waits in the system."""
    _Heard.terminated = None
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _is_new(number: int, seconds: float) -> bool:
    """Take note of a signal; whether it is none that follows another SIGTERM within so many seconds."""
    now, last = time.monotonic(), _Heard.terminated
    _Heard.number = _Heard.number or number
    if number != signal.SIGTERM:
        return True
    if last is not None and now - last <= seconds:
        return False
    _Heard.terminated = now
    return True


@contextlib.contextmanager
def _handlers(
    wanted: dict[signal.Signals, Callable[[int, FrameType | None], None]],
    after: Callable[[Handler], Handler] = lambda old: old,
) -> Iterator[None]:
    """Handle signals inside the block; `after` says by what, given the handler of before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in wanted.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, after(old))

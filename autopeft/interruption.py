"""Ctrl-C and SIGTERM: who hears of them, and which exit code they lead to.

A command of the command line ends by either, wherever it is: SIGTERM, which schedulers send, raises
`Terminated`, as Ctrl-C raises `KeyboardInterrupt`. A search that has trials running does not end there and
then: inside `heeded` it is told, so that it can write its results.

Signals come in swarms: a key that is held down repeats, and `timeout` sends SIGTERM to the process and to its
group. What comes within moments of the same signal is its echo. Once a signal has ended something, neither is
heard for 15 s, so that results can be written, and processes and folders put away. Whatever takes longer is
ended by the next one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

__all__ = ["Terminated", "exit_code", "forget", "heeded", "remind", "sentence", "terminable"]

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

# A key that is held down repeats 10 to 50 times a second; some schedulers send SIGTERM twice.
_ECHO_SECONDS = {signal.SIGINT: 0.25, signal.SIGTERM: 2.0}
# What was begun at a signal, such as writing the results, may go on so long before another one ends it.
_END_SECONDS = 15.0


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever tidies up after Ctrl-C does so after this too."""


class _Heard:
    """What has come so far in this command.

    Attributes:
        number: the signal that came first.
        last: when each signal came last.
        ending: since when something ends for a signal's sake.
    """

    number: int | None = None
    last: dict[int, float]
    ending: float | None = None


def forget() -> None:
    """Let the next signal be the first one: what the last one was to end has ended, and the command goes
    on."""
    _Heard.number, _Heard.last, _Heard.ending = None, {}, None


forget()


def exit_code() -> int:
    """The exit code of a command that was interrupted, as shells have it: 143 by SIGTERM, 130 by Ctrl-C."""
    return 128 + (_Heard.number or signal.SIGINT)


def sentence() -> str:
    """What a command says that was interrupted."""
    return "interrupted by SIGTERM." if _Heard.number == signal.SIGTERM else "interrupted."


@contextlib.contextmanager
def terminable(*, last: bool = False) -> Iterator[None]:
    """Raise `KeyboardInterrupt` at Ctrl-C and `Terminated` at SIGTERM inside the block; elsewhere than in the
    main thread nothing changes.

    Args:
        last: the process ends after the block. Signals do not hinder that, so that the exit code stays.
    """
    forget()
    if last:
        # What is registered first is called last, and Python then takes away all handlers but this one.
        atexit.register(_ignore)

    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        # A child between its fork and its exec has this handler too, and leaves the signal to its parent.
        if os.getpid() == process and not _ends():
            _note(number)
            _Heard.ending = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    # Shells let what runs in the background ignore Ctrl-C.
    heard = [n for n in _ECHO_SECONDS if (n, signal.getsignal(n)) != (signal.SIGINT, signal.SIG_IGN)]
    with _handlers(dict.fromkeys(heard, end), after=_late if last else None):
        try:
            yield
        finally:
            if last:
                _Heard.ending = time.monotonic()


def _late(old: Handler) -> Handler:
    """The handler of before, once the process should have ended."""

    def late(number: int, frame: FrameType | None) -> None:
        if not _ends():
            signal.signal(number, old)
            signal.raise_signal(number)

    return late


def _ignore() -> None:
    for number in _ECHO_SECONDS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def heeded(interrupt: Callable[[], None], stopped: Callable[[], bool]) -> Iterator[None]:
    """Call `interrupt` at Ctrl-C and SIGTERM inside the block.

    A Ctrl-C that comes when what goes on is `stopped` already raises `KeyboardInterrupt`. Elsewhere than in
    the main thread nothing changes.
    """
    forget()

    def tell(number: int, frame: FrameType | None) -> None:
        if _ends() or _note(number):
            return
        if number == signal.SIGINT and stopped():
            _Heard.ending = time.monotonic()
            raise KeyboardInterrupt
        interrupt()

    with _handlers({signal.SIGINT: tell, signal.SIGTERM: tell}):
        try:
            yield
        finally:
            if _Heard.number is not None:  # its results are written now
                _Heard.ending = time.monotonic()


def remind() -> None:
    """From another thread, let the main thread hear of SIGTERM, also where it waits in the system."""
    _Heard.last.pop(signal.SIGTERM, None)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _ends() -> bool:
    """Whether something ends for a signal's sake, and has time left for it."""
    return _Heard.ending is not None and time.monotonic() - _Heard.ending <= _END_SECONDS


def _note(number: int) -> bool:
    """Take note of a signal; whether it is the echo of one that came before."""
    now, before = time.monotonic(), _Heard.last.get(number)
    _Heard.number, _Heard.last[number] = _Heard.number or number, now
    return before is not None and now - before <= _ECHO_SECONDS[signal.Signals(number)]


@contextlib.contextmanager
def _handlers(
    wanted: dict[signal.Signals, Callable[[int, FrameType | None], None]],
    after: Callable[[Handler], Handler] | None = None,
) -> Iterator[None]:
    """Handle signals inside the block; `after` says what follows it, given the handler of before."""
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
            signal.signal(number, old if after is None else after(old))

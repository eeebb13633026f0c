"""The two threads of an executor: one that Ray may block for ever, and the caller's, for all the rest."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, NoReturn, TypeVar

from autopeft.search.execution.health import RayEndedError

__all__ = ["DriverThread"]

_TICK = 0.5
_JOIN_SECONDS = 5.0
T = TypeVar("T")


class _AbandonedError(BaseException):
    """Takes an abandoned thread through Ray's code, which handles no such thing."""


class DriverThread:
    """Lets a second thread have functions called in the first, one at a time.

    The first thread starts the second, serves it, and gives up when it must, however stuck the second is.
    From then on the second rests at its next call, so that it touches nothing while it is taken down; when
    the context is left, it ends.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._closed, self._released = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._abandoned = False

    def __enter__(self) -> DriverThread:
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        if self._abandoned:
            return
        self._released.set()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)

    # In the first thread
    # ------------------------------------------------------------------------------------------------------

    def run(self, work: Callable[[], None], between: Callable[[], None]) -> None:
        """Do `work` in a second thread and serve its calls until it ends; `between` is called all the time.

        Raises:
            Exception: what `work` raised.
            BaseException: what `between` raised, at once; the second thread is left behind.
        """
        outcome: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(work, outcome), daemon=True)
        self._thread.start()
        try:
            while not outcome.done():
                with contextlib.suppress(queue.Empty):
                    _resolve(*self._calls.get(timeout=_TICK))
                between()
        finally:
            self._closed.set()
        outcome.result()

    def abandon(self) -> None:
        """Let the second thread rest for ever, as what it would put away on its way out cannot be."""
        self._abandoned = True

    # In the second thread
    # ------------------------------------------------------------------------------------------------------

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """What `function(*args)` returns or raises in the first thread."""
        future: Future[T] = Future()
        self._calls.put((partial(function, *args), future))
        while not self._closed.is_set():
            if wait([future], timeout=_TICK).done:
                return future.result()
        return self._rest()

    def pause(self) -> None:
        """Go on, unless the first thread has given up: then never come back."""
        if self._closed.is_set():
            self._rest()

    def _work(self, work: Callable[[], None], outcome: Future[None]) -> None:
        try:
            _resolve(work, outcome)
        except _AbandonedError:
            pass  # raised by `_rest` to end this very thread; nobody waits for its outcome any more
        except BaseException as error:
            # Ray raises SystemExit in threads that wait for it when it ends.
            outcome.set_exception(RuntimeError(f"{type(error).__name__} in Ray's thread"))
        finally:
            self._calls.put((lambda: None, Future()))

    def _rest(self) -> NoReturn:
        """Touch nothing of Ray any more; end once the context is left."""
        self._released.wait()
        raise _AbandonedError


def _resolve(work: Callable[[], Any], outcome: Future[Any]) -> None:
    try:
        result = work()
    except RayEndedError:
        # Nobody else can do anything about it.
        raise
    except Exception as error:
        outcome.set_exception(error)
    else:
        outcome.set_result(result)

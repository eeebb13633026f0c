"""A thread for each tracker, so that a slow or broken one costs the search nothing. Knows nothing of Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from autopeft.search.tracking.entry import TrackedRun

__all__ = ["BackgroundTracker", "Tracker"]

# Calls that may wait before figures of single steps are left out: a server of a second per call lags by
# minutes then, and the curves of a search have points enough.
_BACKLOG = 200


class Tracker(Protocol):
    """Where entries are logged; all calls come from one thread. Each entry appears once, by its name."""

    def start(self, entry: TrackedRun) -> None:
        """Begin an entry, or go on with one that rested, in this process or in an earlier one."""
        ...

    def report(self, entry: TrackedRun, step: int, metrics: Mapping[str, float]) -> None: ...

    def rest(self, entry: TrackedRun, *, last: bool) -> None:
        """Put an entry away that may go on later; with `last` in another process, if it does not rest yet."""
        ...

    def end(self, entry: TrackedRun, state: str) -> None:
        """Put an entry away for good; `state` is that of its record."""
        ...


class BackgroundTracker:
    """Takes calls to one tracker, in their order, in a thread of its own.

    The first call that raises ends it: `error` says why, and what comes later is thrown away. This is the
    one place where whatever a tracker, its server or its disk raises is caught.

    Args:
        name: of the tracker.
        opening: opens it, and closes it after the last call.
    """

    def __init__(self, name: str, opening: Callable[[], AbstractContextManager[Tracker]]) -> None:
        self.name, self._opening = name, opening
        self.error: str | None = None
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        # A daemon: the process can end though a server never answers.
        threading.Thread(target=self._serve, daemon=True, name=f"autopeft-{name}").start()

    def tell(self, call: Callable[[Tracker], None], *, minor: bool = False) -> None:
        """Have a call made; a minor one is left out where many wait already."""
        if self.error is None and not (minor and self.left > _BACKLOG):
            self._calls.put(call)

    def finish(self) -> None:
        """Close the tracker once all calls are made."""
        self._calls.put(None)

    @property
    def left(self) -> int:
        """Calls that wait."""
        return self._calls.qsize()

    def wait(self, seconds: float) -> bool:
        """Whether it is closed, or has failed, within that time."""
        # Not the thread's `join`: where Ctrl-C interrupts that, Python takes the thread for ended.
        return self._over.wait(max(seconds, 0.0))

    def _serve(self) -> None:
        try:
            with self._opening() as tracker:
                while (call := self._calls.get()) is not None:
                    call(tracker)
        except (Exception, SystemExit) as error:
            # Ray raises SystemExit in threads that wait for it when it ends. The error itself is not kept: it
            # would keep the tracker.
            lines = [line.strip() for line in str(error).split("\n") if line.strip()]
            self.error = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        finally:
            self._over.set()

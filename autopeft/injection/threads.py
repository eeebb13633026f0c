"""Which threads are at work on a model: those in a forward, and one that attaches or detaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from autopeft.errors import UsageError

__all__ = ["Forwards", "changing"]

_WAY_OUT = "wait for it, or give each thread a model of its own (copy.deepcopy)"
_LOCK = threading.Lock()
_CHANGING: dict[int, tuple[int, int]] = {}  # by a model's id: the thread that changes it, and how deep it is


class Forwards:
    """The threads that are in a forward of what is attached to a model.

    Each counts its own, so that none waits for another.

    Args:
        name: of what is attached, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._open: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_open": {}}  # nobody is in a forward of a copy

    def enter(self) -> None:
        """This thread's forward begins; it may begin one within another."""
        me = threading.get_ident()
        self._open[me] = self._open.get(me, 0) + 1

    def enter_alone(self) -> None:
        """As `enter`, where two forwards at once would disturb each other.

        Raises:
            UsageError: another thread is in one.
        """
        with _LOCK:
            self.refuse_others("begin another")
            self.enter()

    def leave(self) -> None:
        """This thread's forward ends."""
        me = threading.get_ident()
        left = self._open.get(me, 0) - 1
        if left > 0:
            self._open[me] = left
        else:
            self._open.pop(me, None)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A hook: see `enter`."""
        self.enter()

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A hook: see `leave`."""
        self.leave()

    def refuse_others(self, what: str) -> None:
        """Raise UsageError if another thread is in a forward; `what` this thread wants to do.

        A thread that has ended, however it did, is in none.
        """
        me = threading.get_ident()
        others = [one for one in list(self._open) if one != me]
        if not others:
            return
        alive = {thread.ident: thread.name for thread in threading.enumerate()}
        busy = next((alive[one] for one in others if one in alive), None)
        if busy is not None:
            raise UsageError(
                f"The thread {busy!r} is in a forward with {self.name} attached, so this one cannot {what}: "
                f"{_WAY_OUT}."
            )


@contextmanager
def changing(model: nn.Module, what: str) -> Iterator[None]:
    """Within, this thread alone attaches to a model or detaches from it.

    Args:
        what: this thread wants to do.

    Raises:
        UsageError: another thread is doing so.
    """
    me, key = threading.get_ident(), id(model)
    with _LOCK:
        owner, depth = _CHANGING.get(key, (me, 0))
        if owner == me:
            _CHANGING[key] = me, depth + 1
    if owner != me:
        names = (thread.name for thread in threading.enumerate() if thread.ident == owner)
        raise UsageError(
            f"The thread {next(names, str(owner))!r} is attaching to this {type(model).__name__} or is "
            f"detaching from it, so this one cannot {what}: {_WAY_OUT}."
        )
    try:
        yield
    finally:
        with _LOCK:
            if depth:
                _CHANGING[key] = me, depth
            else:
                del _CHANGING[key]

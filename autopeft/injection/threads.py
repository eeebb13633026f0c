"""Which threads are at work on a model: those in a forward, and one that attaches or detaches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from autopeft.errors import UsageError

__all__ = ["Forwards", "changing"]

_WAY_OUT = "wait for it, or give each thread a model of its own (copy.deepcopy)"
_LOCK = threading.Lock()
_CHANGING: dict[int, tuple[int, int]] = {}  # by a model's id: the thread that changes it, and how deep it is


@dataclass
class Forwards:
    """The threads that are in a forward of what is attached to a model.

    Each counts its own, so that none waits for another.

    Attributes:
        name: of what is attached, for messages.
        depths: by a thread's id, how many forwards it is in, one within another.
    """

    name: str
    depths: dict[int, int] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "depths": {}}  # nobody is in a forward of a copy

    def enter(self) -> None:
        """This thread's forward begins; it may begin one within another."""
        me = threading.get_ident()
        self.depths[me] = self.depths.get(me, 0) + 1

    def leave(self) -> None:
        """This thread's forward ends."""
        me = threading.get_ident()
        left = self.depths.get(me, 0) - 1
        if left > 0:
            self.depths[me] = left
        else:
            self.depths.pop(me, None)

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
        others = [one for one in list(self.depths) if one != me]
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
def changing(model: nn.Module, what: str, forwards: Forwards | None = None) -> Iterator[None]:
    """Within, this thread alone attaches to a model or detaches from it.

    Args:
        model: the model.
        what: this thread wants to do.
        forwards: of what is attached, where there is something.

    Raises:
        UsageError: another thread attaches or detaches, or is in one of the forwards.
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
        if forwards is not None:
            forwards.refuse_others(what)
        yield
    finally:
        with _LOCK:
            if depth:
                _CHANGING[key] = me, depth
            else:
                del _CHANGING[key]

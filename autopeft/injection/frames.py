"""Per-call data on its way to the sites.

The `Context` of a forward travels as the keyword argument `autopeft_context` from the root of a stack down
to the attention module of each layer, where it is laid down for the sites that take no extra argument (a
Linear in the FFN). transformers checkpoints a layer's `forward`, not its `__call__`: hooks of the layer
itself do not run again at recomputation, those of modules inside it do, and the keyword arguments are kept
with the checkpoint. So laying it down at the attention module is what makes recomputation read the context
of its own forward, also when several forwards of one model are open.

What is laid down is thread-local, and overwritten rather than stacked: a recomputation that stops early
leaves nothing behind that could be mistaken for the data of the next.
"""

from __future__ import annotations

import itertools
import threading

from torch import Tensor

from autopeft.method import Context

__all__ = ["CONTEXT", "PREFIX", "Frames", "frames", "new_token"]

CONTEXT = "autopeft_context"
PREFIX = "autopeft_prefix"

_tokens = itertools.count(1)


def new_token() -> int:
    """A number for a hybrid, unique in this process."""
    return next(_tokens)


class Frames(threading.local):
    """Contexts by (hybrid, stack), what regions captured on their way in by (hybrid, site, name), and the
    (hybrid, stack) whose reserved rows hold their prompts already."""

    def __init__(self) -> None:
        self.contexts: dict[tuple[int, str], Context] = {}
        self.captured: dict[tuple[int, str, str], Tensor] = {}
        self.filled: set[tuple[int, str]] = set()

    def context(self, token: int, stack: str) -> Context:
        """The context laid down last, or one that says that it is lost."""
        return self.contexts.get((token, stack)) or Context(hybrid=token, lost=True)

    def forget_captured(self, token: int) -> None:
        """Drop what a recomputation that stopped early left captured (it would keep activations alive)."""
        self.captured = {k: v for k, v in self.captured.items() if k[0] != token}

    def clear(self, token: int) -> None:
        """Forget everything of a hybrid."""
        self.contexts = {k: v for k, v in self.contexts.items() if k[0] != token}
        self.filled = {k for k in self.filled if k[0] != token}
        self.forget_captured(token)


frames = Frames()

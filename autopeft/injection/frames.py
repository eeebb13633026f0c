"""Per-call data on its way to the sites.

The `Context` of a forward travels as the keyword argument `autopeft_context` from the root of a stack down
to the attention module of each layer, where it is laid down for the sites that take no extra argument (a
Linear in the FFN). transformers checkpoints a layer's `forward`, not its `__call__`: hooks of the layer
itself do not run again at recomputation, those of modules inside it do, and the keyword arguments are kept
with the checkpoint. So laying it down at the attention module is what makes recomputation read the context
of its own forward, also when several forwards of one model are open.

What is laid down is thread-local, and overwritten rather than stacked: a recomputation that stops early
leaves nothing behind that could be mistaken for the data of the next.

A norm in front of the attention runs earlier in its layer. Where such norms are altered, the context is kept
with the checkpoint of the whole layer (`autopeft.injection.install.LayerHooks`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from autopeft.method import Context

__all__ = [
    "CONTEXT",
    "FEATURES",
    "PREFIX",
    "SCORES",
    "TOKENS",
    "Frames",
    "RowsKey",
    "frames",
    "further_forward",
    "reading",
]

CONTEXT = "autopeft_context"
PREFIX = "autopeft_prefix"
READ = "autopeft_read"
SCORES = "autopeft_scores"
FEATURES = "autopeft_features"

RowsKey = tuple[int, str]
"""A hybrid, and the site of a region."""

TOKENS = itertools.count(1)
"""Numbers for hybrids, each unique in this process."""


class Frames(threading.local):
    """Contexts by (hybrid, stack), what regions captured on their way in by (hybrid, site, name), and the
    (hybrid, stack) whose embeddings are as the hybrid has them already, reserved rows filled.

    `bare` are the hybrids of which nothing acts at the moment, since the bare backbone runs before theirs.

    `further` says of the forwards that begin now that they are further ones of a step. `rows` are the
    positions (batch, k) that a region is computed for at present, with the length of the sequence.

    `entered` is the (hybrid, stack) whose forward began last. Contexts alone do not tell: a recomputation
    lays down that of an earlier forward and leaves it.

    `behind` is, for each hybrid that acts on logits, the context of a stack that is done, until they are
    made. `read` are the positions (batch, tokens) that alone go through the map that makes them, where these
    are chosen row by row (see `reading`), and `picks` is whether who calls the model picks them by number.
    """

    def __init__(self) -> None:
        self.contexts: dict[tuple[int, str], Context] = {}
        self.captured: dict[tuple[int, str, str], Tensor] = {}
        self.embedded: set[tuple[int, str]] = set()
        self.bare: set[int] = set()
        self.further = False
        self.rows: dict[RowsKey, tuple[Tensor, int]] = {}
        self.entered: tuple[int, str] = (0, "")
        self.behind: dict[int, Context] = {}
        self.read: Tensor | None = None
        self.picks = False

    def context(self, token: int, stack: str) -> Context:
        """The context laid down last, or one that says that it is lost."""
        return self.contexts.get((token, stack)) or Context(hybrid=token, lost=True)

    @contextmanager
    def without(self, token: int) -> Iterator[None]:
        """Within, nothing of a hybrid acts in this thread."""
        self.bare.add(token)
        try:
            yield
        finally:
            self.bare.discard(token)

    def clear(self, token: int) -> None:
        """Forget everything of a hybrid."""
        self.bare.discard(token)
        self.behind.pop(token, None)
        self.contexts = {k: v for k, v in self.contexts.items() if k[0] != token}
        self.embedded = {k for k in self.embedded if k[0] != token}
        self.captured = {k: v for k, v in self.captured.items() if k[0] != token}


frames = Frames()


@contextmanager
def further_forward() -> Iterator[None]:
    """Within, forwards of this thread are further ones of a step (see `autopeft.method.Context`)."""
    before, frames.further = frames.further, True
    try:
        yield
    finally:
        frames.further = before


@contextmanager
def reading(positions: Tensor) -> Iterator[None]:
    """Within, forwards of this thread make logits of these positions (batch, tokens) alone, as (N, width)."""
    before, frames.read = frames.read, positions
    try:
        yield
    finally:
        frames.read = before

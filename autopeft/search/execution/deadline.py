"""Jobs that may take so long and no longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from autopeft.errors import AutoPEFTError

__all__ = ["TookTooLong", "within"]

Backbone = Callable[[str], nn.Module]


class TookTooLong(AutoPEFTError):  # noqa: N818
    """A job was given up, as the search has no time left for it."""


@contextmanager
def within(seconds: float | None, backbone: Backbone) -> Iterator[Backbone]:
    """Inside the block, what a backbone is got by; its forwards, of training as of scoring, raise
    `TookTooLong` once so many seconds are over. `None` for no limit.

    Args:
        backbone: gives it in a precision.
    """
    if seconds is None:
        yield backbone
        return
    until, handles = time.monotonic() + seconds, list[RemovableHandle]()

    def check(module: nn.Module, args: Any) -> None:
        if time.monotonic() > until:
            raise TookTooLong(
                f"It was given up after {seconds:,.0f} s; the time of the search (--time) left no more."
            )

    def watched(precision: str) -> nn.Module:
        model = backbone(precision)
        handles.append(model.register_forward_pre_hook(check))
        return model

    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()

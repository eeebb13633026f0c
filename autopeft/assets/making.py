"""Models of configurations alone, without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autopeft.errors import UsageError

__all__ = ["making_model"]


@contextmanager
def making_model(where: str) -> Iterator[None]:
    """Names the configuration whose model cannot be made: the classes of models raise whatever their
    arithmetic does.

    Args:
        where: whose configuration it is.

    Raises:
        UsageError: what is inside raised anything.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UsageError(f"The configuration of {where} makes no model: {first}") from error

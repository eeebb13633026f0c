"""A dictionary of bounded size."""

from __future__ import annotations

from itertools import islice
from typing import TypeVar

__all__ = ["Memo"]

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """Remembers results by key. At `limit` entries the older half is forgotten.

    Read it with `get`, write it with `keep`.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def keep(self, key: K, value: V) -> V:
        """Remember `value` under `key`; returns `value`."""
        if len(self) >= self.limit:
            for old in list(islice(self, max(1, self.limit // 2))):
                self.pop(old, None)
        self[key] = value
        return value

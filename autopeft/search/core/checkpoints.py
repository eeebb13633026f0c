"""Where a search keeps files that may still be needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

__all__ = ["CheckpointStore"]


class CheckpointStore(Protocol):
    """Keeps files by key: saved hybrids, and checkpoints of paused trials.

    The keys `best-<n>` (weights of the best trial so far, by its number) and those of final runs (the job's
    id) are the controller's; a strategy keeps what it needs under keys of its own.
    """

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Replace what is held under `key`."""
        ...

    def get(self, key: str) -> Mapping[str, bytes] | None:
        """What is held under `key`."""
        ...

    def drop(self, key: str) -> None:
        """Hold nothing under `key`."""
        ...

    def keys(self) -> Collection[str]:
        """All keys under which something is held."""
        ...

    @property
    def size(self) -> int:
        """Bytes of everything that is held."""
        ...

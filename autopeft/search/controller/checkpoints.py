"""Weights, checkpoints and the time spent: what a running search keeps beside its records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from autopeft.errors import UsageError
from autopeft.runs.files import write_atomic

__all__ = ["Clock", "FolderCheckpoints"]


class FolderCheckpoints:
    """Saved hybrids and checkpoints as files, a folder for each key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Replace what is held under `key`."""
        target, new = self._folder / key, self._folder / f".{key}-new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, data in files.items():
            write_atomic(new / Path(name).name, data)
        self.drop(key)
        new.rename(target)

    def get(self, key: str) -> Mapping[str, bytes] | None:
        """What is held under `key`."""
        target = self._folder / key
        return {p.name: p.read_bytes() for p in sorted(target.iterdir())} if target.is_dir() else None

    def drop(self, key: str) -> None:
        """Hold nothing under `key`."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of everything that is held."""
        return sum(p.stat().st_size for p in self._folder.glob("*/*"))


class Clock:
    """Seconds that a run has taken over all of its processes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.before = 0.0
        if file.exists():
            try:
                self.before = max(0.0, float(json.loads(file.read_text(encoding="utf-8"))["seconds"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{str(file)!r} does not hold seconds; remove it.") from error

    def write(self, seconds: float) -> None:
        """Note the seconds of this process."""
        write_atomic(self._file, json.dumps({"seconds": self.before + seconds}) + "\n")

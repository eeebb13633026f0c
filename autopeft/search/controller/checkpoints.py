"""Weights, checkpoints and the time spent: what a running search keeps beside its records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.foreign import file_in, read_json_in
from autopeft.runs.files import write_atomic

__all__ = ["Clock", "FolderCheckpoints"]

_LONGEST = 1e9  # seconds of a run
_OLD = "-old"  # of the hidden folder that holds what is being replaced


class FolderCheckpoints:
    """Saved hybrids and checkpoints as files, a folder for each key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Replace what is held under `key`. Whatever ends the process meanwhile, the old or the new is held.

        Raises:
            AutoPEFTError: the disk is full, or the folder is read-only or gone.
        """
        target, new, old = self._folder / key, self._folder / f".{key}-new", self._old(key)
        try:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            for name, data in files.items():
                write_atomic(new / Path(name).name, data)
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                target.rename(old)
            new.rename(target)
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(target)!r}: {error.strerror}.") from error
        shutil.rmtree(old, ignore_errors=True)

    def get(self, key: str) -> Mapping[str, bytes] | None:
        """What is held under `key`."""
        for folder in (self._folder / key, self._old(key)):
            if folder.is_dir():
                return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}
        return None

    def drop(self, key: str) -> None:
        """Hold nothing under `key`."""
        shutil.rmtree(self._old(key), ignore_errors=True)
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def keys(self) -> tuple[str, ...]:
        """All keys under which something is held, sorted."""
        names = [p.name for p in self._folder.iterdir()] if self._folder.is_dir() else []
        whole = {name for name in names if not name.startswith(".")}
        replaced = {name[1:].removesuffix(_OLD) for name in names if name.endswith(_OLD)}
        return tuple(sorted(whole | replaced))

    def _old(self, key: str) -> Path:
        return self._folder / f".{key}{_OLD}"

    @property
    def size(self) -> int:
        """Bytes of everything that is held."""
        return sum(p.stat().st_size for p in self._folder.glob("*/*"))


class Clock:
    """Seconds that a run has taken over all of its processes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.before = 0.0
        if file_in(file.parent, file.name) is not None:
            try:
                seconds = read_json_in(file.parent, file.name)["seconds"]
                self.before = min(max(0.0, float(seconds)), _LONGEST)
            except (UsageError, ValueError, KeyError, TypeError, OverflowError) as error:
                raise UsageError(f"{str(file)!r} does not hold seconds; remove it.") from error

    def write(self, seconds: float) -> None:
        """Note the seconds of this process."""
        write_atomic(self._file, json.dumps({"seconds": self.before + seconds}) + "\n")

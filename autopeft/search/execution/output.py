"""What a process prints while a job runs: from the files that it prints to, or from Python's own streams."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["OutputFiles", "Tee"]

_TAIL = 200_000  # bytes of each stream that are kept of a job
_STREAMS = {"stderr": 2, "stdout": 1}


@dataclass(frozen=True)
class OutputFiles:
    """The regular files behind a process's standard error and output, as Ray gives its workers.

    What C libraries write is in them too. A process that prints to a terminal or a pipe has none.

    Attributes:
        paths: name of the stream to path; one file for both streams is named once.
    """

    paths: Mapping[str, str]

    @classmethod
    def own(cls) -> OutputFiles:
        """Those of this process; none where the system does not tell (without `/proc`)."""
        found: dict[str, str] = {}
        for name, number in _STREAMS.items():
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.fstat(number).st_mode):
                    found[name] = os.readlink(f"/proc/self/fd/{number}")
        if len(set(found.values())) < len(found):
            found = {"stderr and stdout": found["stderr"]}
        return cls(found)

    def ends(self) -> dict[str, int]:
        """Where each file ends now, in bytes."""
        _flush()
        found = {}
        for name, path in self.paths.items():
            with contextlib.suppress(OSError):
                found[name] = os.stat(path).st_size
        return found

    def since(self, begins: Mapping[str, int]) -> dict[str, str]:
        """What was written to each file since it ended at `begins`, the last 200 kB of it.

        A file that cannot be read, as it lies on another machine, is left out.
        """
        _flush()
        found = {}
        for name, path in self.paths.items():
            with contextlib.suppress(OSError), Path(path).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                begin = begins.get(name, 0)
                file.seek(max(begin if begin <= end else 0, end - _TAIL))
                found[name] = file.read(_TAIL).decode(errors="replace")
        return found


class Tee:
    """Keeps what Python prints in this process, and lets it through.

    What C libraries write does not pass here: the caller's file descriptors are left alone.

    Attributes:
        kept: the last 200,000 characters of each stream.
    """

    def __init__(self) -> None:
        self.kept = dict.fromkeys(_STREAMS, "")
        self.open = False

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep inside the block what is printed to `sys.stdout` and `sys.stderr`."""
        before = {name: getattr(sys, name) for name in _STREAMS}
        for name, stream in before.items():
            setattr(sys, name, _Stream(self, name, stream))
        self.open = True
        try:
            yield
        finally:
            self.open = False
            for name, stream in before.items():
                setattr(sys, name, stream)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Keep nothing inside the block, though it may stand inside `keeping`."""
        was, self.open = self.open, False
        try:
            yield
        finally:
            self.open = was


class _Stream:
    """A text stream that keeps what is written to it; all else is the stream's own."""

    def __init__(self, tee: Tee, name: str, stream: Any) -> None:
        self._tee, self._name, self._stream = tee, name, stream

    def write(self, text: str) -> Any:
        if self._tee.open:
            kept = self._tee.kept
            kept[self._name] = (kept[self._name] + text)[-_TAIL:]
        return self._stream.write(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A closed stream has nothing left to say.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()

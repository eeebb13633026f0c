"""The real command line on a terminal: what a person sees, without colours."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["CONTROL", "beside_terminal", "on_terminal"]

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*words: str, cwd: Path, columns: int = 80) -> str:
    """Run a command of `autopeft` whose stdout is a terminal of so many columns; it has to succeed."""
    shown, _ = _run("stdout", words, cwd, {"COLUMNS": str(columns), "LINES": "40", "NO_COLOR": "1"})
    return shown.replace("\r\n", "\n")


def beside_terminal(*words: str, cwd: Path, columns: int = 80) -> tuple[str, str]:
    """Run a command whose stderr alone is such a terminal; returns what stdout got and what was seen, each
    time that a line was written anew as a line of its own."""
    shown, out = _run("stderr", words, cwd, {"COLUMNS": str(columns), "LINES": "24"})
    return out, shown.replace("\r", "\n")


def _run(which: str, words: Sequence[str], cwd: Path, more: Mapping[str, str]) -> tuple[str, str]:
    """What came on the terminal that stdout or stderr is, without its commands, and on the other one."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile() as other:
        process = subprocess.Popen(
            [sys.executable, "-m", "autopeft", *words],
            cwd=cwd,
            env={**os.environ, "TERM": "xterm", **more},
            stdin=subprocess.DEVNULL,
            stdout=theirs if which == "stdout" else other,
            stderr=theirs if which == "stderr" else other,
        )
        os.close(theirs)
        try:
            shown = CONTROL.sub("", _read(ours).decode())
        finally:
            os.close(ours)
            process.wait(timeout=300)
        other.seek(0)
        told = other.read().decode()
    assert process.returncode == 0, shown + told
    return shown, told


def _read(terminal: int) -> bytes:
    """All that is written to a terminal until its other end is closed."""
    seen = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 1 << 16):
            seen += part
    return seen

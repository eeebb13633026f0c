"""The real command line on a terminal: what a person sees, without colours."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["on_terminal"]

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*words: str, cwd: Path, columns: int = 80) -> str:
    """Run a command of `autopeft` whose output is a terminal of so many columns; it has to succeed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "autopeft", *words],
        cwd=cwd,
        env={**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    finally:
        os.close(ours)
        _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error.decode()
    return _CONTROL.sub("", shown.decode()).replace("\r\n", "\n")

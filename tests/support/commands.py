"""The command line in a process of its own, as a user has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run"]


def run(place: Path, *command: str, text: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    """`autopeft` with this command in the folder `place`, which has a cache of its own.

    It reads `text` and has to end with the exit code `code`.
    """
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", *command], cwd=place, input=text, capture_output=True, text=True,
        timeout=600, env={**os.environ, "AUTOPEFT_CACHE": str(place / "cache"), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done

"""The command line, in a process of its own or, where nothing but what it says is asked, in this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from autopeft.cli import main

__all__ = ["run", "run_here"]


def _environment(place: Path) -> dict[str, str]:
    return {"AUTOPEFT_CACHE": str(place / "cache"), "COLUMNS": "200"}


def run(place: Path, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`autopeft` with this command in the folder `place`, which has a cache of its own."""
    return subprocess.run(
        [sys.executable, "-m", "autopeft", *command], cwd=place, input=text, capture_output=True, text=True,
        timeout=500, env={**os.environ, **_environment(place)}, check=False,
    )  # fmt: skip


def run_here(place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported what another one would take seconds for."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(place)
        for name, value in _environment(place).items():
            patch.setenv(name, value)
        code = main(list(command))
    return subprocess.CompletedProcess(list(command), code, out.getvalue(), err.getvalue())

"""The real command line in a process of its own, and Ctrl-C or SIGTERM at a chosen moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Command"]

_WAIT = 240.0  # on a machine that has other things to do too


class Command:
    """A command that runs in `place`; its output grows in `out` while it runs.

    A shell lets the processes that it starts in the background ignore Ctrl-C, and they pass that on: the
    command is started as one in the foreground is.
    """

    def __init__(self, place: Path, *words: str, patch: str = "") -> None:
        """`patch` is Python that is executed before the command."""
        self.log = place / "output.txt"
        code = f"{patch}\nimport sys\nfrom autopeft.cli import main\nsys.exit(main())"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *words] if patch else [sys.executable, "-m", "autopeft", *words],
                cwd=place,
                env={**os.environ, "AUTOPEFT_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def out(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so while the command runs."""
        end = time.monotonic() + _WAIT
        while not reached():
            assert self.process.poll() is None, f"It ended before:\n{self.out}"
            assert time.monotonic() < end, f"Nothing happened:\n{self.out}"
            time.sleep(0.01)

    def ctrl_c(self) -> int:
        """What a terminal does at Ctrl-C: SIGINT to the whole group; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.end()

    def terminate(self) -> int:
        """What `timeout` does: SIGTERM to the process and to its group; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        os.killpg(self.process.pid, signal.SIGTERM)
        return self.end()

    def interrupt(self, number: signal.Signals) -> int:
        """Either of them."""
        return self.ctrl_c() if number == signal.SIGINT else self.terminate()

    def end(self) -> int:
        """Wait for the command; it is killed after two minutes."""
        try:
            return self.process.wait(_WAIT)
        finally:
            self.kill()

    def kill(self) -> None:
        """End whatever is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

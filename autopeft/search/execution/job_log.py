"""The text that a job leaves: which process ran it, what went wrong, and what was printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from autopeft.search.execution.process import (
    ProcessInfo,
    is_stopped,
    memory_text,
    oom_kills,
    peak_memory,
)

__all__ = ["WorkerTrace", "finished_log", "last_step"]


def finished_log(about: ProcessInfo, told: str, output: Mapping[str, str]) -> str:
    """The text of a job that came to its end in this process.

    Args:
        told: what the runner itself has to tell, tracebacks above all.
        output: what was printed meanwhile, by stream.
    """
    head = f"{about.text()}\npeak memory of the process: {memory_text(peak_memory())}"
    return _joined(head, told, output)


def last_step(step: int, loss: float) -> str:
    """The last step that a job has reported, as a line of its log."""
    return f"last step reported: {step}, with loss {loss:.6g}" if step else "last step reported: none"


def _joined(head: str, told: str, output: Mapping[str, str]) -> str:
    streams = "\n".join(f"{name}:\n{text.rstrip()}\n" for name, text in output.items() if text.strip())
    return "\n\n".join(part.strip() for part in (head, told, streams) if part.strip())


@dataclass
class WorkerTrace:
    """What the driver knows of a worker, for the day when it is lost.

    Attributes:
        about, process: its process; `None` until it has told, and `process` where it is on another machine.
        ends: where its output files ended when its last job did.
        step, loss, peak: the last that its job reported: step, loss, and the process's peak memory in bytes.
        stopped_since: since when it was seen to stand still, in seconds of the caller's clock.
    """

    about: ProcessInfo | None = None
    ends: Mapping[str, int] = field(default_factory=dict)
    step: int = 0
    loss: float = float("nan")
    peak: int | None = None
    stopped_since: float | None = None
    process: psutil.Process | None = None
    _began: float = field(default_factory=time.time)
    _kills: int | None = None

    def introduce(self, about: ProcessInfo) -> None:
        """Take down what a worker tells of its process, which still runs."""
        self.about = about
        if about.here:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process = psutil.Process(about.pid)

    def begin(self) -> None:
        """Take note that a job begins."""
        self.step, self.loss = 0, float("nan")
        self._began, self._kills = time.time(), oom_kills()

    @property
    def stopped(self) -> bool:
        """Whether its process stands still by a signal, as far as it is one of this machine."""
        return self.process is not None and is_stopped(self.process.pid)

    def kill(self) -> None:
        """End its process, where it is one of this machine."""
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.kill()

    def lost_log(self, told: str) -> str:
        """The text of a job whose worker is gone.

        Args:
            told: what is known of it otherwise; Ray's account of the death.
        """
        lines = ["The worker's process ended before its job did."]
        if self.process is not None:
            lines.append(
                "A signal that it could catch would have left a message in its standard error, below. "
                "Without one it was SIGKILL, which the kernel sends when memory is short, or an exit."
            )
        if self.stopped_since is not None:
            lines.append("before that: it had been stopped, as by SIGSTOP, and did not go on")
        lines.append(last_step(self.step, self.loss))
        lines.append(f"seconds since the job was given: {time.time() - self._began:.1f}")
        peak = "not reported" if self.peak is None else memory_text(self.peak)
        lines.append(f"peak memory of the process, as last reported: {peak}")
        now = oom_kills()
        if self.process is not None and now is not None and self._kills is not None:
            short = now - self._kills
            lines.append(f"processes that the kernel killed for want of memory since then: {short}")
        output: Mapping[str, str] = {}
        if self.about is not None:
            lines.append(self.about.text())
            output = self.about.output.since(self.ends)
        return _joined("\n".join(lines), told, output)

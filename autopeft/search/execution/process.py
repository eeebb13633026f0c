"""A worker's process: what it is built on, the memory it took, and how it ended as far as can be known."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import select
import signal
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from autopeft.search.execution.output import OutputFiles

__all__ = [
    "ProcessInfo",
    "ProcessWatch",
    "has_ended",
    "is_stopped",
    "listener",
    "memory_text",
    "oom_kills",
    "peak_memory",
    "stopped_below",
    "versions",
]

_PACKAGES = ("autopeft", "torch", "transformers", "ray")
_END_SECONDS = 2.0
# Linux 6.15 and later tell how a process ended to whoever holds a descriptor of it, not only to its parent:
# `PIDFD_GET_INFO` on `struct pidfd_info` of 64 bytes (include/uapi/linux/pidfd.h).
_GET_INFO, _INFO_BYTES, _INFO_EXIT, _EXIT_CODE_AT = 0xC040FF0B, 64, 1 << 3, 60


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of what a job is built on, by package."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def peak_memory() -> int:
    """Most bytes of memory that this process has had at a time (its peak resident set)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def memory_text(size: int) -> str:
    """Bytes as a log shows them."""
    return f"{size / 1e6:,.0f} MB"


def oom_kills() -> int | None:
    """Processes that this machine's kernel has killed for want of memory; `None` where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return None


@dataclass(frozen=True)
class ProcessInfo:
    """What a worker tells of its process.

    Attributes:
        host: name of its machine.
        space: names the machine and its space of process ids: the same on the driver's side means that `pid`
            is the same process there.
        versions: of Python and packages.
        output: the files that it prints to.
    """

    host: str
    space: str
    pid: int
    versions: Mapping[str, str]
    output: OutputFiles

    @classmethod
    def own(cls) -> ProcessInfo:
        """That of this process."""
        return cls(platform.node(), _space(), os.getpid(), versions(), OutputFiles.own())

    def text(self) -> str:
        """Two lines of a log."""
        built_on = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"process: {self.pid} on {self.host}\nversions: {built_on}"


class ProcessWatch:
    """Watches a process of another parent, so that it is known how it ended.

    It must be made while the process runs. A process of another machine cannot be watched.
    """

    def __init__(self, info: ProcessInfo) -> None:
        self._descriptor: int | None = None
        self._pid = info.pid
        self.here = bool(info.space) and info.space == _space()
        if self.here and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._descriptor = os.pidfd_open(info.pid)

    @property
    def stopped(self) -> bool:
        """Whether it stands still by a signal such as SIGSTOP, as far as it is of this machine."""
        return self.here and is_stopped(self._pid)

    def kill(self) -> None:
        """End the process, which must be of this machine."""
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is not None and hasattr(signal, "pidfd_send_signal"):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            else:
                os.kill(self._pid, signal.SIGKILL)

    def ending(self) -> str:
        """How the process ended, in words; it is waited for, 2 s at most. The watch is over then."""
        if not self.here:
            return "not known: the worker ran on another machine"
        goes_on = self._descriptor is not None and not _ends(self._descriptor)
        status = None if goes_on else self._status()
        self.close()
        if goes_on:
            return f"not known: it had not ended {_END_SECONDS:g} s after it was given up"
        if status is None:
            return (
                "not known: this system tells the process's parent alone. A signal that it could catch would "
                "have left a message in its standard error, below; without one it was SIGKILL, as the kernel "
                "sends when memory is short, or the process left by itself"
            )
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            with contextlib.suppress(ValueError):
                return f"signal {number} ({signal.Signals(number).name})"
            return f"signal {number}"
        return f"exit status {os.WEXITSTATUS(status)}"

    def close(self) -> None:
        """Let go of the process."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _status(self) -> int | None:
        """The wait status of a process that has ended, or `None` where it cannot be had."""
        if self._descriptor is None:
            return None
        told = bytearray(struct.pack("=Q", _INFO_EXIT).ljust(_INFO_BYTES, b"\0"))
        try:
            fcntl.ioctl(self._descriptor, _GET_INFO, told)
        except OSError:
            return None
        (mask,) = struct.unpack_from("=Q", told)
        return struct.unpack_from("=i", told, _EXIT_CODE_AT)[0] if mask & _INFO_EXIT else None


def _ends(descriptor: int) -> bool:
    """Wait for a process, 2 s at most; whether it has ended by then."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(int(1000 * _END_SECONDS)))


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine stands still by a signal such as SIGSTOP.

    One that a debugger has halted does not count, nor one that computes, waits or sleeps.
    """
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def has_ended(pid: int) -> bool:
    """Whether a process of this machine runs no more, though its parent may not have taken note."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def stopped_below(pid: int) -> list[int]:
    """Process ids of those descendants of a process that stand still."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True) if is_stopped(child.pid)]
    except psutil.Error:
        return []


def listener(port: int) -> int | None:
    """The process of this machine that listens at a TCP port, as far as this user may know."""
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    return next((c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port), None)


def _space() -> str:
    """The kernel's boot and the space of process ids; empty where the system has no such things."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""

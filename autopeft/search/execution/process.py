"""A worker's process: what it is built on, the memory it took, and how it ended as far as can be known."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
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

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine, whose ids mean the same processes here."""
        return bool(self.space) and self.space == _space()

    def text(self) -> str:
        """Two lines of a log."""
        built_on = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"process: {self.pid} on {self.host}\nversions: {built_on}"


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

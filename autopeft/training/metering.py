"""What a training takes while it runs: the time of each step, and the memory at its peak.

On one CPU thread time is processor time, which other programs on the machine disturb little; on several
threads and on other devices it is wall time. Memory is the resident set of the whole process at its highest,
elsewhere the bytes that tensors held on the device, where it measures them.
"""

from __future__ import annotations

import ctypes
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

from autopeft.devices import peak_memory, reset_peak_memory, synchronize

__all__ = ["PeakMemory", "clock", "resident"]

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK, _NOW = "VmHWM", "VmRSS"


def clock(device: torch.device) -> float:
    """Seconds from a fixed point; only differences mean something."""
    if device.type != "cpu":
        synchronize(device)
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


class PeakMemory:
    """The peak from the moment that it is made; `None` where it cannot be measured."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._sound = device, False
        if device.type != "cpu":
            self._sound = reset_peak_memory(device)
            return
        give_back()
        with suppress(OSError):
            _CLEAR.write_text("5")  # sets the process's own high-water mark back to what it holds now
            self._sound = True

    def bytes(self) -> int | None:
        """The peak so far."""
        if not self._sound:
            return None
        return _status(_PEAK) if self._device.type == "cpu" else peak_memory(self._device)


def resident() -> int | None:
    """Bytes of this process that lie in memory now; `None` where the system does not tell."""
    give_back()
    return _status(_NOW)


def _status(name: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith(f"{name}:")), [])
    return int(found[1]) << 10 if len(found) == 3 and found[1].isdigit() else None


def give_back() -> None:
    """Hand memory that was freed back to the system, where the C library can: it would count as held."""
    if sys.platform.startswith("linux"):
        # Of the C library that this process has: looking for it by name would start other programs.
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

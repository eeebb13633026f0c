"""Tries cases one after another in this process and says which of them are bad.

A call may return, or raise the package's own errors with a message that fits on a screen and can be printed.
Time is the wall's, without what the process spends in the queue for a processor that others have.
It is bad where it raises anything else, takes more than 10 s (more on a processor that is slower than
`_REFERENCE` says) or 500 MB above what the process held before,
runs what its input names, starts a process, asks another host, or opens what lies outside its folder.
"""

from __future__ import annotations

import copy
import gc
import importlib
import io
import os
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, printable

from .canary import plant, traces, watched
from .surface import Case

__all__ = ["MEGABYTES", "SECONDS", "Bench", "Finding", "bench"]

SECONDS = 10.0
MEGABYTES = 500
# Seconds in which the processor that `SECONDS` is meant for copies `_ROWS`.
_REFERENCE = 0.004
_ROWS = [{"content": str(number), "special": False} for number in range(5000)]
MOST_TEXT, MOST_LINES = 6000, 60
# No case shall take the machine down: what would need more ends with a MemoryError.
_ADDRESS_SPACE = 4 << 30


class TooSlow(BaseException):
    """The time is over; no `except Exception` holds it up."""


@dataclass(frozen=True)
class Finding:
    """A case that is bad, and why."""

    case: Case
    what: str
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.what}\n  again: {self.case.again()}"


@dataclass
class Bench:
    """Where cases are tried.

    Attributes:
        root: holds the folder of the case, the canaries and a cache of its own.
        tried, returned: numbers of cases by surface, and of those that returned.
        seconds: that cases took, by surface.
        most: the largest number of megabytes above the idle memory, by surface.
        idle: resident megabytes when the bench was set up.
    """

    root: Path
    idle: float
    tried: Counter[str] = field(default_factory=Counter)
    returned: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    most: Counter[str] = field(default_factory=Counter)

    def run(self, cases: Iterable[Case], *, told: Callable[[Finding], None] | None = None) -> list[Finding]:
        """Try all; returns the bad ones, each also told when it is found."""
        found = []
        for case in cases:
            finding = self.attempt(case)
            if finding is not None:
                found.append(finding)
                if told is not None:
                    told(finding)
        return found

    def attempt(self, case: Case, *, keep: bool = False) -> Finding | None:
        """Try one case in an empty folder; `None` where it is not bad."""
        folder = self.root / "case"
        _remove(folder)
        folder.mkdir()
        (self.root / "current").write_text(case.again())
        name = case.surface.name
        here = os.getcwd()
        os.chdir(folder)
        try:
            call = case.prepare(folder)
            outcome = _Outcome()
            with watched(self.root) as seen:
                _measured(call, outcome)
        finally:
            os.chdir(here)
        self.tried[name] += 1
        self.returned[name] += outcome.error is None
        self.seconds[name] += outcome.seconds
        self.most[name] = max(self.most[name], round(outcome.megabytes))
        wrong = [*outcome.wrong(), *dict.fromkeys(seen), *traces(folder)]
        if not keep:
            _remove(folder)
        return Finding(case, "; ".join(wrong), outcome.trace) if wrong else None

    @property
    def grown(self) -> float:
        """Megabytes that the process holds more than when the bench was set up."""
        gc.collect()
        return _resident("VmRSS") - self.idle


@contextmanager
def bench() -> Iterator[Bench]:
    """A folder to try cases in, with canaries, a cache of its own, and no hub."""
    # Optuna's figures load matplotlib where it is installed, which lists the machine's fonts by a process.
    importlib.import_module("optuna.visualization")
    root = Path(tempfile.mkdtemp(prefix="autopeft-fuzz-"))
    plant(root)
    (root / "home").mkdir()
    changes = {"AUTOPEFT_CACHE": str(root / "cache"), "HOME": str(root / "home"), "HF_HUB_OFFLINE": "1"}
    changes |= {"HF_DATASETS_OFFLINE": "1", "COLUMNS": "100", "AUTOPEFT_DEBUG": "0"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    sys.path.append(str(root / "importable"))
    try:
        yield Bench(root, _resident("VmRSS"))
    finally:
        sys.path.remove(str(root / "importable"))
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _remove(root)


@dataclass
class _Outcome:
    error: BaseException | None = None
    seconds: float = 0.0
    megabytes: float = 0.0
    trace: str = ""

    def wrong(self) -> Iterator[str]:
        error = self.error
        if isinstance(error, TooSlow) or (self.seconds > SECONDS and self.seconds > _allowed()):
            yield f"it took more than {SECONDS:g} s"
        elif isinstance(error, AutoPEFTError):
            yield from _message(str(error))
        elif error is not None:
            yield f"{type(error).__name__}: {_shown(error)}"
        if self.megabytes > MEGABYTES:
            yield f"it took {self.megabytes:,.0f} MB"


def _message(text: str) -> Iterator[str]:
    if len(text) > MOST_TEXT or text.count("\n") >= MOST_LINES:
        yield f"its error has {len(text):,} letters in {text.count(chr(10)) + 1:,} lines: {text!r:.100}"
    if printable(text, keep="\n") != text:
        yield f"its error holds what a terminal acts on: {text!r:.200}"
    if not text.strip():
        yield "its error says nothing"


def _shown(error: BaseException) -> str:
    try:
        return f"{str(error)!r:.300}"
    except Exception as again:  # an error that cannot even be written out
        return f"(unreadable: {type(again).__name__})"


def _measured(call: Callable[[], object], outcome: _Outcome) -> None:
    """Call within the limits and note how it ended."""
    before = _resident("VmRSS")
    _forget_peak()
    with _no_more_memory(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), _no_input():
        started = _clock()
        try:
            with _deadline(started):
                call()
        except BaseException as error:  # also what Rust raises where it panics
            outcome.error = error
        outcome.seconds = _clock() - started
    outcome.megabytes = _resident("VmHWM") - before
    if outcome.error is not None:
        outcome.trace = "".join(traceback.format_exception(outcome.error, limit=-12))
        # The frames hold what was read, which the next case would be blamed for.
        traceback.clear_frames(outcome.error.__traceback__)


@contextmanager
def _deadline(begun: float) -> Iterator[None]:
    """Raises `TooSlow` when the time is over. The alarm of whoever had set one before is put back."""

    def over(number: int, frame: Any) -> None:
        left = _allowed() - (_clock() - begun)
        if left <= 0:
            raise TooSlow
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))

    handler = signal.signal(signal.SIGALRM, over)
    started = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - started), 0.001))


def _allowed() -> float:
    """`SECONDS`, and more where this processor is slower now than the one that they are meant for."""

    def copied() -> float:
        begun = time.thread_time()
        copy.deepcopy(_ROWS)
        return time.thread_time() - begun

    return SECONDS * max(1.0, min(copied() for _ in range(9)) / _REFERENCE)


def _clock() -> float:
    """Seconds that passed while this thread ran or waited for anything but a processor."""
    now = time.monotonic()
    try:
        with open("/proc/self/schedstat", encoding="ascii") as file:
            return now - int(file.read().split()[1]) / 1e9
    except OSError:  # a kernel without these figures
        return now


@contextmanager
def _no_more_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = int(_resident("VmSize") * (1 << 20)) + _ADDRESS_SPACE
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _no_input() -> Iterator[None]:
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nothing:
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def _resident(kind: str) -> float:
    """Megabytes that `/proc/self/status` gives: `VmRSS` now, `VmHWM` at most, `VmSize` of address space."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(kind + ":"):
                return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {kind}")


def _forget_peak() -> None:
    """Let `VmHWM` begin anew (proc(5), `clear_refs`)."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _remove(folder: Path) -> None:
    """Remove a folder whatever its modes are."""
    if not folder.exists():
        return
    for path, _, _ in os.walk(folder):
        os.chmod(path, stat.S_IRWXU)
    shutil.rmtree(folder)

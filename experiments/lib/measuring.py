"""What measurements of time share: rotated order, medians with their range, tables, JSON files.

Everything is measured in CPU seconds of the process that does the work (`time.process_time`), with one torch
thread, so that a busy machine disturbs little. The sides of a comparison take turns, in an order that rotates
from repeat to repeat. Nothing here passes or fails by a stopwatch.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from lib.storage import write_whole

__all__ = [
    "Summary",
    "cache_at",
    "commit",
    "environment",
    "interleave",
    "note",
    "one_thread",
    "ratios",
    "read_json",
    "rotated",
    "show",
    "summarise",
    "write_json",
]

_PACKAGES = ("autopeft", "torch", "transformers", "peft", "datasets", "accelerate", "ray", "numpy")
T = TypeVar("T")


def one_thread() -> None:
    """One thread for torch and its libraries, here and in the processes started from here."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@contextmanager
def cache_at(folder: Path) -> Iterator[None]:
    """Keep what AutoPEFT caches in `folder` meanwhile, also in the processes started from here.

    Models and data are to be fetched before, from the user's own cache: they are named by their paths.
    """
    before = os.environ.get("AUTOPEFT_CACHE")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["AUTOPEFT_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["AUTOPEFT_CACHE"]
        else:
            os.environ["AUTOPEFT_CACHE"] = before


# Order
# ---------------------------------------------------------------------------------------------------------


def rotated(names: Sequence[str], repeat: int) -> list[str]:
    """The order of a repeat: over as many repeats as there are names, each stands at each place once."""
    if not names:
        return []
    shift = repeat % len(names)
    return [*names[shift:], *names[:shift]]


def interleave(
    variants: Mapping[str, Callable[[], T]],
    repeats: int,
    tell: Callable[[str, int, T], None] | None = None,
) -> dict[str, list[T]]:
    """Run every variant once in each repeat, in rotated order; the results of each, in order of repeats.

    `tell(name, repeat, result)` is called after each run.

    Raises:
        ValueError: `repeats` is not positive.
    """
    if repeats < 1:
        raise ValueError(f"At least one repeat is needed, but got {repeats=}.")
    found: dict[str, list[T]] = {name: [] for name in variants}
    for repeat in range(repeats):
        for name in rotated(list(variants), repeat):
            result = variants[name]()
            found[name].append(result)
            if tell is not None:
                tell(name, repeat, result)
    return found


# Statistics
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Median of some values, the least and the largest of them, and how many they are."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 1) -> str:
        """`median (low–high)`; the median alone where there is one value."""
        if self.count == 1:
            return f"{self.median:,.{digits}f}"
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}–{self.high:,.{digits}f})"

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def summarise(values: Sequence[float]) -> Summary:
    """Median, minimum and maximum.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("Nothing to summarise: there are no values.")
    return Summary(statistics.median(values), min(values), max(values), len(values))


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Summary:
    """How many times `slow` is of `fast`, repeat by repeat.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    return summarise([a / b for a, b in zip(slow, fast, strict=True)])


# Keeping and showing
# ---------------------------------------------------------------------------------------------------------


def commit() -> str | None:
    """The commit that runs, with `+` where tracked files differ from it, results aside; `None` outside a
    repository."""
    here = ["git", "-C", str(Path(__file__).parent)]
    found = subprocess.run([*here, "rev-parse", "--short=8", "HEAD"], capture_output=True, text=True)
    but_results = ["--", ":/", ":(exclude,top)experiments/*/results/*"]
    changed = subprocess.run([*here, "diff", "--quiet", "HEAD", *but_results], capture_output=True)
    return found.stdout.strip() + "+" * (changed.returncode == 1) or None


def environment() -> dict[str, Any]:
    """What the figures depend on: versions, processor, threads."""
    import torch

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path, payload: Mapping[str, Any]) -> None:
    """Write `payload` with the environment and the command line, all at once or not at all.

    Of its `settings` those that change no figure are left out, and of the command where the file lies.
    """
    settings = {k: v for k, v in payload.get("settings", {}).items() if k not in ("out", "tables")}
    rest = {**payload, "settings": settings} if settings else dict(payload)
    script = "/".join(Path(sys.argv[0]).resolve().parts[-2:])
    full = {"command": [script, *_without_out(sys.argv[1:])], "environment": environment(), **rest}
    write_whole(path, json.dumps(full, indent=1) + "\n")
    note(f"written to {path}")


def _without_out(arguments: Sequence[str]) -> list[str]:
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if before != "--out" and word.partition("=")[0] != "--out"]


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    # A file or a pipe has no width of its own, and a table cut to 80 columns loses figures.
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def note(text: str) -> None:
    """One line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

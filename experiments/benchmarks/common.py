"""What the benchmarks share: rotated order, medians with their range, tables, and the JSON beside them.

Everything is measured in CPU seconds of the process that does the work (`time.process_time`), with one torch
thread, so that a busy machine disturbs little. The sides of a comparison take turns, in an order that rotates
from repeat to repeat. Nothing here passes or fails by a stopwatch.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

__all__ = [
    "RESULTS",
    "Balance",
    "Summary",
    "cache_at",
    "environment",
    "interleave",
    "note",
    "one_thread",
    "ratios",
    "rotated",
    "show",
    "summarise",
    "write_json",
]

RESULTS = Path(__file__).parent / "results"
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


class Balance:
    """Results by key in a JSON-lines file, one line each, so that an interrupted benchmark goes on.

    A line that was cut off in the middle of writing is dropped, and what it stood for is measured again. Of
    several lines of one key the last counts. `fresh` starts with an empty file.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            self.rows[row["key"]] = row
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def forget(self, which: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop every row that `which` says yes to, from the file as well."""
        self.rows = {key: row for key, row in self.rows.items() if not which(row)}
        lines = [json.dumps(row) + "\n" for row in self.rows.values()]
        self.path.write_text("".join(lines), encoding="utf-8")

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row under `key` and return it."""
        full = {"key": key, **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(full) + "\n")
        self.rows[key] = full
        return full


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
    """Write `payload` with the environment and the command line, all at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in payload.get("settings", {}).items() if k != "out"}  # a path says nothing
    rest = {**payload, "settings": settings} if settings else dict(payload)
    full = {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "environment": environment(), **rest}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps(full, indent=1) + "\n")
    os.chmod(name, 0o644)
    os.replace(name, path)
    note(f"written to {path}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(placement) for placement in row))
    # A file or a pipe has no width of its own, and a table cut to 80 columns loses figures.
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def note(text: str) -> None:
    """One line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

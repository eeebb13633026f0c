"""Where the CPU time of a trial's steps goes: torch's operators, and the Python around them.

Three windows of steps lie one after the other in one trial: plain steps for reference, steps under
`torch.profiler` (self time of each operator), and steps under cProfile (self time of each Python function).
Each profiler slows what it watches, so they do not share a window, and shares are of their own window: of its
CPU time for Python, of its wall time for operators (`torch.profiler` knows no other), so that another process
on the same core stretches both alike. Time that Python spends in built-in functions belongs to the function
that called them, except for torch's, which are operators.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

import autopeft
from lib.measuring import show

__all__ = ["THRESHOLD", "Profile", "Row", "Windows", "group_of", "python_rows", "show_profile"]

THRESHOLD = 0.02
_TORCH_BUILTINS = ("torch", "run_backward", "FunctionMeta", "TensorBase")
_OURS = [Path(folder) for folder in (*autopeft.__path__, *import_module("autopeft.methods").__path__)]
Place = tuple[str, int, str]


class Row(NamedTuple):
    """One line of a profile: `share` of the window's CPU time, `ms` and `calls` per step."""

    group: str
    name: str
    share: float
    ms: float
    calls: float


@dataclass(frozen=True)
class Profile:
    """What the three windows found.

    Attributes:
        ms: CPU milliseconds of a step, plain, under the operator profiler and under the Python profiler.
        operators: torch's operators, by self time.
        python: Python functions, by self time.
        called: torch's built-ins by the group of the code that called them directly.
    """

    ms: dict[str, float]
    operators: list[Row]
    python: list[Row]
    called: dict[str, float]

    def groups(self) -> dict[str, float]:
        """Share of each group in the Python window; all operators are one group."""
        total: dict[str, float] = defaultdict(float)
        for row in self.python:
            total[row.group] += row.share
        return {**dict(sorted(total.items())), "torch operators": sum(self.called.values())}

    def above(self, threshold: float = THRESHOLD) -> list[Row]:
        """Rows of more than `threshold`, the largest first in each half."""
        return [r for r in (*self.operators, *self.python) if r.share > threshold]

    def to_dict(self) -> dict[str, Any]:
        return {
            "ms_per_step": self.ms,
            "groups": self.groups(),
            "operators_called_from": self.called,
            "rows": [row._asdict() for row in self.above()],
        }


def group_of(file: str) -> str:
    """`autopeft`, `transformers`, `torch` or `other`, by the path of a Python file."""
    parts = Path(file).parts
    if any(Path(file).is_relative_to(folder) for folder in _OURS):
        return "autopeft"
    package = parts[parts.index("site-packages") + 1] if "site-packages" in parts else ""
    return package if package in ("transformers", "torch") else "other"


class Windows:
    """Profiles a trial from its `on_step`: `warm` steps, then three windows of `steps` each."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps = warm, steps
        self._cpu: dict[str, float] = {}
        self._wall: dict[str, float] = {}
        self._begun = (0.0, 0.0)
        self._torch = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._python = cProfile.Profile(time.process_time)

    @property
    def total(self) -> int:
        """Steps that the trial needs."""
        return self.warm + 3 * self.steps

    def on_step(self, step: int, loss: float) -> None:
        """Called after each step, 1-based: ends the window that is over and begins the next."""
        done = step - self.warm
        if done < 0 or done % self.steps:
            return
        now = (time.process_time(), time.perf_counter())
        window = done // self.steps
        if window > 0:
            self._end(window, now)
        self._begin(window)

    def _begin(self, window: int) -> None:
        if window == 1:
            self._torch.start()
        self._begun = (time.process_time(), time.perf_counter())
        if window == 2:
            self._python.enable()

    def _end(self, window: int, now: tuple[float, float]) -> None:
        if window == 3:
            self._python.disable()
        name = ("plain", "operators", "python")[window - 1]
        self._cpu[name], self._wall[name] = (b - a for a, b in zip(self._begun, now, strict=True))
        if window == 2:
            self._torch.stop()

    def profile(self) -> Profile:
        """What was found, after the trial."""
        python, called = python_rows(pstats.Stats(self._python), self._cpu["python"], self.steps)
        ms = {name: 1e3 * seconds / self.steps for name, seconds in self._cpu.items()}
        return Profile(ms, self._operators(ms["operators"]), python, called)

    def _operators(self, ms: float) -> list[Row]:
        rows = []
        for event in self._torch.key_averages():
            share = 1e-6 * event.self_cpu_time_total / self._wall["operators"]
            rows.append(Row("torch operators", event.key, share, share * ms, event.count / self.steps))
        return sorted(rows, key=lambda row: -row.share)


def python_rows(stats: pstats.Stats, seconds: float, steps: int) -> tuple[list[Row], dict[str, float]]:
    """Rows of Python functions, and the share of torch's built-ins by the group that called them."""
    own: dict[Place, float] = defaultdict(float)
    calls: dict[Place, int] = {}
    called: dict[str, float] = defaultdict(float)
    table: dict[Place, Any] = stats.stats  # type: ignore[attr-defined]  # typeshed leaves it out
    for place, (_, count, self_time, _, callers) in table.items():
        if place[0] != "~":
            own[place] += self_time
            calls[place] = count
            continue
        operator = any(word in place[2] for word in _TORCH_BUILTINS)
        for caller, (_, _, part, _) in callers.items():
            if operator:
                called[group_of(caller[0])] += part / seconds
            else:
                own[caller] += part
    rows = [
        Row(group_of(file), f"{Path(file).name}:{line} {name}", t / seconds, 1e3 * t / steps, n / steps)
        for (file, line, name), t in own.items()
        for n in (calls.get((file, line, name), 0),)
    ]
    return sorted(rows, key=lambda row: -row.share), dict(sorted(called.items()))


def show_profile(profile: Profile, what: str) -> None:
    """Print groups, and rows above the threshold."""
    ms = profile.ms
    title = (
        f"Steps of ours, {what}: {ms['plain']:.1f} ms plain, {ms['operators']:.1f} under torch.profiler, "
        f"{ms['python']:.1f} under cProfile"
    )
    shares = [*profile.groups().items()]
    shares += [(f"  called directly by {name}", share) for name, share in profile.called.items()]
    groups = [(name, f"{100 * share:.1f}", f"{share * ms['python']:.2f}") for name, share in shares]
    show(title, ("group (under cProfile)", "% of CPU", "ms/step"), groups)
    rows = [
        (f"{r.group}: {r.name}", f"{100 * r.share:.1f}", f"{r.ms:.2f}", f"{r.calls:.1f}")
        for r in profile.above()
    ]
    show(f"Self CPU time above {THRESHOLD:.0%}", ("where", "% of its window", "ms/step", "calls/step"), rows)

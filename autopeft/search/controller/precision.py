"""The precision of a search's trainings; that of trials may be found first by a probe on a worker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autopeft.foreign import file_in, parse_json
from autopeft.runs.files import write_atomic
from autopeft.search.core.jobs import JobResult, PrecisionJob
from autopeft.search.planning.precision import final_precision
from autopeft.training.precision import PrecisionProbe

__all__ = ["ChosenPrecision", "kept_precision"]

FILE = "precision.json"
_PROBE = "precision"
# Below so many parameters a training takes seconds: timings say little, and there is little to gain.
_LEAST = 5_000_000
_MOST_BYTES = 10_000


class ChosenPrecision:
    """What trials and sweeps compute in, and all else.

    Args:
        asked: `fp32`, `bf16`, or `auto` for what a probe finds.
        parameters: of the backbone; a small one is not probed.
        folder: of the run, where the finding is kept, so that a search that goes on keeps to it; `None` to
            keep nothing.
        notify: is told what was found.
        final: of all that is scored on *test* (see `final_precision`).

    Attributes:
        value: `fp32` or `bf16`; `None` until the probe has ended.
    """

    def __init__(
        self,
        asked: str = "fp32",
        *,
        parameters: int = 0,
        folder: Path | None = None,
        notify: Callable[[str], None] | None = None,
        final: str = "fp32",
    ) -> None:
        self._folder, self._notify = folder, notify
        self._final, self._parameters = final, parameters
        self.value: str | None = asked if asked != "auto" else None
        if self.value is None and parameters < _LEAST:
            self.value = "fp32"
        if self.value is None and folder is not None:
            self.value = kept_precision(folder)

    @property
    def final(self) -> str:
        """`fp32` or `bf16`, of all that is scored on *test*."""
        return final_precision(self._final, self.value, self._parameters)

    def job(self, seed: int) -> PrecisionJob:
        """The probe."""
        return PrecisionJob(
            id=_PROBE, kind="probe", label="bf16 against fp32", recipe={}, seed=seed, splits=()
        )

    def take(self, result: JobResult) -> None:
        """Take in what the probe found; where it failed, fp32 is the choice."""
        probe, told = _probe_of(result.measured), "Recipes are tried in fp32"
        if result.error is not None:
            told = f"{told}: measuring bf16 failed ({result.error.rstrip('.')})."
        elif probe is None:
            told = f"{told}: there is nothing to measure bf16 on."
        else:
            told = probe.sentence()
        self.value = "fp32" if probe is None or result.error is not None else probe.precision
        if self.value != self.final:
            told += f" Finalists and baselines are trained in {self.final}."
        if self._folder is not None:
            kept = {"precision": self.value, "why": told, **result.measured}
            write_atomic(self._folder / FILE, json.dumps(kept, indent=1) + "\n")
        if self._notify is not None:
            self._notify(told)


def _probe_of(measured: Mapping[str, float]) -> PrecisionProbe | None:
    numbers = [measured.get(name, math.nan) for name in ("fp32", "bf16", "error")]
    return PrecisionProbe(*numbers) if all(map(math.isfinite, numbers)) else None


def kept_precision(folder: Path) -> str | None:
    """The choice that a run folder holds; `None` where it holds none, so that it is measured again."""
    file = file_in(folder, FILE)
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            found: Any = parse_json(opened.read(_MOST_BYTES))
    except (OSError, ValueError):
        return None
    value = found.get("precision") if isinstance(found, dict) else None
    return value if value in ("fp32", "bf16") else None

"""The precision of a search's trainings: asked for, or found by a probe.

Finalists and baselines, which are scored on *test*, may have another than trials. The probe is a job for the
workers. Where time or memory is predicted, and the precision of finalists follows from the probe, it runs
before the predictions, in this process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.assets import ModelSource
from autopeft.effort import LARGE
from autopeft.foreign import file_in, parse_json
from autopeft.runs.files import write_atomic
from autopeft.search.core.jobs import JobResult, PrecisionJob
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.search.planning.arguments import SearchArguments
from autopeft.tasks import Task
from autopeft.training import TrainingPlan
from autopeft.training.precision import PrecisionProbe

__all__ = [
    "PrecisionFinding",
    "final_precision",
    "kept_precision",
    "known_precision",
    "precision_of_finals",
    "probe_job",
]

FILE = "precision.json"
_PROBE = "precision"
# Below so many parameters a training takes seconds: timings say little, and there is little to gain.
_LEAST = 5_000_000
_MOST_BYTES = 10_000


def final_precision(asked: str, trials: str | None, parameters: int) -> str:
    """`fp32` or `bf16`.

    Args:
        asked: one of these, or `auto`: fp32, and that of the trials for a large backbone.
        trials: that of the trials; `auto` or `None` where a probe has yet to find it, which counts as fp32.
        parameters: of the backbone.
    """
    if asked != "auto":
        return asked
    return trials if parameters >= LARGE and trials not in (None, "auto") else "fp32"


def known_precision(asked: str, parameters: int) -> str | None:
    """That of trials where no probe is needed for it; else `None`.

    Args:
        asked: `fp32`, `bf16`, or `auto` for what a probe finds.
        parameters: of the backbone; a small one is not probed.
    """
    if asked != "auto":
        return asked
    return "fp32" if parameters < _LEAST else None


def probe_job(seed: int) -> PrecisionJob:
    """The probe."""
    return PrecisionJob(id=_PROBE, kind="probe", label="bf16 against fp32", recipe={}, seed=seed, splits=())


@dataclass(frozen=True)
class PrecisionFinding:
    """What the probe found.

    Attributes:
        precision: of trials and sweeps, `fp32` or `bf16`.
        why: the same with its reason, as a sentence.
        measured: numbers of the probe, by name (see `PrecisionProbe`).
    """

    precision: str
    why: str
    measured: Mapping[str, float]

    @classmethod
    def of(cls, result: JobResult) -> PrecisionFinding:
        """What follows from the probe's result; where it failed, fp32 is the choice."""
        probe, in_doubt = _probe_of(result.measured), "Recipes are tried in fp32"
        if result.error is not None:
            why = f"{in_doubt}: measuring bf16 failed ({result.error.rstrip('.')})."
        elif probe is None:
            why = f"{in_doubt}: there is nothing to measure bf16 on."
        else:
            return cls(probe.precision, probe.sentence(), result.measured)
        return cls("fp32", why, result.measured)

    def write(self, folder: Path, why: str) -> None:
        """Keep it in a run folder, so that a search that goes on keeps to it."""
        kept = {"precision": self.precision, "why": why, **self.measured}
        write_atomic(folder / FILE, json.dumps(kept, indent=1) + "\n")


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


def precision_of_finals(
    a: SearchArguments,
    source: ModelSource,
    task: Task,
    plan: TrainingPlan,
    parameters: int,
    kept: str | None,
    notify: Callable[[str], None] | None,
) -> tuple[str, PrecisionFinding | None]:
    """The precision of finalists and baselines, and what the probe found, where that decides.

    It is needed before any job. So the probe runs here, as the measurements for predictions do.

    Args:
        parameters: of the backbone.
        kept: what the probe of an earlier process of the search found.
        notify: is told that a probe runs, and what it found.
    """
    trials, found = known_precision(a.precision, parameters) or kept, None
    follows = len({final_precision(a.final_precision, one, parameters) for one in ("fp32", "bf16")}) > 1
    if trials is None and follows:
        if notify is not None:
            notify("Timing bf16 against fp32: limits are predicted for what finalists are trained in.")
        found = PrecisionFinding.of(_probed(a, source, task, plan))
        if notify is not None:
            notify(found.why)
        trials = found.precision
    return final_precision(a.final_precision, trials, parameters), found


def _probed(a: SearchArguments, source: ModelSource, task: Task, plan: TrainingPlan) -> JobResult:
    """The probe's result, as a worker has it."""
    setup = WorkerSetup(str(a.model), source, task, plan, a.cpus_per_trial, key=_PROBE)
    try:
        return execute(setup, probe_job(a.seed), lambda step, loss: None, lambda: False)
    finally:
        release()  # both backbones would count as memory that trainings take

"""Probes of a search where nobody chose: which pooling its heads have, and the precision of its trainings.

Trials, finalists and baselines have the same pooling, so that it favours none of them. Finalists and
baselines, which are scored on *test*, may have another precision than trials. The precision probe is a job
for the workers. Where time or memory is predicted, and the precision of finalists follows from the probe, it
runs before the predictions, in this process.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autopeft.assets import ModelSource, dtype_of
from autopeft.devices import empty_cache
from autopeft.effort import LARGE
from autopeft.errors import AutoPEFTError, CompositionError, UsageError
from autopeft.foreign import file_in, parse_json
from autopeft.graph import build_graph
from autopeft.recipe import EmptyRecipe
from autopeft.recipe.pooling import MEAN_POOLING, Pooling
from autopeft.runs.files import write_atomic
from autopeft.search.core.jobs import JobResult, PrecisionJob
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.option_checks import AUTO
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from autopeft.tasks import Task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan
from autopeft.training.pooling import PoolingFinding, better_pooling
from autopeft.training.precision import PrecisionProbe

__all__ = [
    "FAILURES",
    "PrecisionFinding",
    "final_precision",
    "find_pooling",
    "kept_precision",
    "known_precision",
    "pooling_of_search",
    "precision_of_finals",
    "probe_failed",
    "probe_job",
]

_log = logging.getLogger("autopeft")

_ROWS = 500
"""Training rows that a pooling probe reads: enough to tell two poolings apart."""

FAILURES = (AutoPEFTError, ArithmeticError, IndexError, RuntimeError, ValueError)
"""Errors of a pooling probe. Trainings will meet their cause too, and the search reports it with theirs."""

_LARGEST = 1_000_000_000
"""Parameters of a backbone beyond which none is loaded for a probe, beside those of the workers."""

FILE = "precision.json"
_PROBE = "precision"
# Below so many parameters a training takes seconds: timings say little, and there is little to gain.
_LEAST = 5_000_000
_MOST_BYTES = 10_000


# Pooling
# --------------------------------------------------------------------------------------------------------


def pooling_of_search(
    a: SearchArguments,
    space: Space,
    source: ModelSource,
    task: Task,
    plan: TrainingPlan,
    spec: BackboneSpec,
    processes: int,
    notify: Callable[[str], None] | None,
) -> Pooling:
    """What heads read: the pooling that the arguments name, or the one that a probe finds better.

    A backbone that is quantised, in parts, or of more than a billion parameters is not probed, and a recipe
    for serving has to be a plain model: there heads read what the model gives them.

    Args:
        processes: of one trial.
        notify: takes a line about what a probe found.

    Raises:
        UsageError: the mean is asked for, and heads of the kind read several positions, or it could not be
            served.
        CompositionError: the mean is asked for, and the backbone has none to give.
    """
    if a.pooling == "mean":
        kind = task.task_kind
        if not kind.head.one_state:
            raise UsageError(
                f"pooling='mean' gives a head one state for each row, and models for {kind.plain} read "
                "several; leave it out."
            )
        if a.serve is not None:
            raise UsageError(
                f"pooling='mean' has no form in plain transformers, and serve={a.serve!r} asks for one; "
                "leave one of them out."
            )
        _check_space(space, spec)
        return "mean"
    if a.pooling == "own" or a.serve is not None or a.quantize is not None or processes > 1:
        return "own"
    try:
        _check_space(space, spec)
        dtype = torch.float32 if a.precision == AUTO else dtype_of(a.precision)
        found = find_pooling(source, task, plan, spec, dtype=dtype, notify=notify)
    except CompositionError as error:
        _log.debug("heads read what the model gives them: %s", error)
        return "own"
    except FAILURES as error:
        if notify is not None:
            notify(f"The head reads what the model gives it: {probe_failed(error)}.")
        return "own"
    if found is None:
        return "own"
    if notify is not None:
        notify(found.sentence())
    return found.pooling


def probe_failed(error: Exception) -> str:
    """That a probe failed, and why, as the end of a sentence."""
    return f"a probe failed ({str(error).rstrip('.')[:200]})"


def _check_space(space: Space, spec: BackboneSpec) -> None:
    """Refuse a backbone that has no mean to give, and a space whose methods have the mean's place."""
    build_graph(MEAN_POOLING, spec)
    bound = replace(space, pooling="mean").bind(spec)
    try:
        build_graph(bound.materialize(bound.middle()), spec)
    except EmptyRecipe:
        return


def find_pooling(
    source: ModelSource,
    task: Task,
    plan: TrainingPlan,
    spec: BackboneSpec,
    *,
    dtype: torch.dtype = torch.float32,
    notify: Callable[[str], None] | None = None,
) -> PoolingFinding | None:
    """Load the backbone, and see what lets a linear probe of some training rows predict the others better.

    Args:
        dtype: of the backbone's weights.
        notify: is told that it begins.

    Returns:
        The finding; `None` where there is no choice (see `better_pooling`), or the backbone is too large.
    """
    kind = task.task_kind
    if not (kind.head.one_state and kind.head.probed) or spec.parameters > _LARGEST:
        return None
    if notify is not None:
        notify("Fitting heads to what the frozen backbone makes of some training rows.")
    few, processor = task.subset(_ROWS, 1, 1, seed=plan.seed), kind.encoder.load_processor(source)
    # No more tokens than the tokenizer takes: longer texts are refused where they are trained on.
    longest = min(plan.max_length, getattr(processor, "model_max_length", plan.max_length))
    data = encode(few, processor, longest)
    model = kind.head.load_model(source, task.labels, seed=plan.seed, dtype=dtype)
    try:
        return better_pooling(model, data, plan, spec)
    finally:
        del model
        gc.collect()
        empty_cache()


# Precision
# --------------------------------------------------------------------------------------------------------


def final_precision(asked: str, trials: str | None, parameters: int) -> str:
    """The precision of finalists and baselines, `fp32` or `bf16`.

    Args:
        asked: one of these, or `auto`: fp32, and that of the trials for a large backbone.
        trials: the precision of the trials; `auto` or `None`, where a probe has yet to choose, count as fp32.
        parameters: of the backbone.
    """
    if asked != "auto":
        return asked
    return trials if parameters >= LARGE and trials not in (None, "auto") else "fp32"


def known_precision(asked: str, parameters: int) -> str | None:
    """The precision of trials where no probe is needed to choose it; else `None`.

    Args:
        asked: `fp32`, `bf16`, or `auto` for what a probe finds.
        parameters: of the backbone; a small one is not probed.
    """
    if asked != "auto":
        return asked
    return "fp32" if parameters < _LEAST else None


def probe_job(seed: int) -> PrecisionJob:
    """The job of the precision probe."""
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
        """The finding of a probe's result: fp32 where the probe failed."""
        numbers = [result.measured.get(name, math.nan) for name in ("fp32", "bf16", "error")]
        if result.error is not None:
            why = f"measuring bf16 failed ({result.error.rstrip('.')})"
        elif not all(map(math.isfinite, numbers)):
            why = "there is nothing to measure bf16 on"
        else:
            probe = PrecisionProbe(*numbers)
            return cls(probe.precision, probe.sentence(), result.measured)
        return cls("fp32", f"Recipes are tried in fp32: {why}.", result.measured)

    def write(self, folder: Path, why: str) -> None:
        """Write it into a run folder, so that a resumed search has the same precision."""
        kept = {"precision": self.precision, "why": why, **self.measured}
        write_atomic(folder / FILE, json.dumps(kept, indent=1) + "\n")


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

    Predictions need it before any job. So the probe runs in this process, as their measurements do.

    Args:
        parameters: of the backbone.
        kept: what the probe of an earlier process of the search found.
        notify: takes a line when the probe begins, and one about what it found.
    """
    trials, found = known_precision(a.precision, parameters) or kept, None
    follows = len({final_precision(a.final_precision, one, parameters) for one in ("fp32", "bf16")}) > 1
    if trials is None and follows:
        if notify is not None:
            notify("Timing bf16 against fp32: limits are predicted for what finalists are trained in.")
        setup = WorkerSetup(str(a.model), source, task, plan, a.cpus_per_trial, key=_PROBE)
        try:
            result = execute(setup, probe_job(a.seed), lambda step, loss: None, lambda: False)
        finally:
            release()  # both backbones would count as memory that trainings take
        found = PrecisionFinding.of(result)
        if notify is not None:
            notify(found.why)
        trials = found.precision
    return final_precision(a.final_precision, trials, parameters), found

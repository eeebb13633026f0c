"""What the heads of a search read: as asked for, or found by a probe before anything is trained.

Trials, finalists and baselines have it alike, so that it favours none of them.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch

from autopeft.assets import ModelSource, dtype_of
from autopeft.errors import AutoPEFTError, CompositionError, UsageError
from autopeft.graph import build_graph
from autopeft.recipe import EmptyRecipe
from autopeft.recipe.pooling import MEAN_POOLING, Pooling
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.option_checks import AUTO
from autopeft.search.space.space import Space
from autopeft.spec import BackboneSpec
from autopeft.tasks import Task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan
from autopeft.training.pooling import PoolingFinding, better_pooling

__all__ = ["FAILURES", "find_pooling", "fitting_length", "pooling_of_search", "probe_failed"]

_log = logging.getLogger("autopeft")

_ROWS = 500
"""Training rows that a probe looks at: it has to tell two poolings apart, not to start a head."""

FAILURES = (AutoPEFTError, ArithmeticError, IndexError, RuntimeError, ValueError)
"""What a probe fails with. Whatever it is, trainings will meet it too, and a search tells it with their
errors."""

_LARGEST = 1_000_000_000
"""Parameters of a backbone beyond which none is loaded for a probe, beside those of the workers."""


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
    """What heads read.

    A backbone that is quantised, in parts, or of more than a billion parameters is not probed, and what is to
    be served has to be a plain model: there they read what the model gives them.

    Args:
        processes: of one trial.
        notify: is told what a probe found.

    Raises:
        UsageError: the mean is asked for, and heads of the kind read several positions, or it could not be
            served.
        CompositionError: the mean is asked for, and the backbone has none to give.
    """
    if a.pooling == "mean":
        _check_mean(a, task)
        _check_space(space, spec)
        return "mean"
    if a.pooling == "own" or a.serve is not None or a.quantize is not None or processes > 1:
        return "own"
    try:
        _check_space(space, spec)
        found = find_pooling(source, task, plan, spec, dtype=_dtype(a.precision), notify=notify)
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


def _dtype(precision: str) -> torch.dtype:
    return torch.float32 if precision == AUTO else dtype_of(precision)


def _check_mean(a: SearchArguments, task: Task) -> None:
    kind = task.task_kind
    if not (kind.pooled and kind.new_head):
        raise UsageError(
            f"pooling='mean' gives a head one state for each row, and models for {kind.name} read several; "
            "leave it out."
        )
    if a.serve is not None:
        raise UsageError(
            f"pooling='mean' has no form in plain transformers, and serve={a.serve!r} asks for one; leave "
            "one of them out."
        )


def _check_space(space: Space, spec: BackboneSpec) -> None:
    """Refuse a backbone that has no mean to give, and a space whose methods have the mean's place."""
    build_graph(MEAN_POOLING, spec)
    bound = space.with_pooling("mean").bind(spec)
    try:
        build_graph(bound.materialize(bound.middle()), spec)
    except EmptyRecipe:
        return


def fitting_length(processor: Any, asked: int) -> int:
    """Tokens that a probe reads: no more than the tokenizer takes; what is longer is refused where it is
    trained on."""
    return min(asked, getattr(processor, "model_max_length", asked))


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
    if not (kind.pooled and kind.new_head and kind.probed) or spec.parameters > _LARGEST:
        return None
    if notify is not None:
        notify("Fitting heads to what the frozen backbone makes of some training rows.")
    few, processor = task.subset(_ROWS, 1, 1, seed=plan.seed), kind.load_processor(source)
    data = encode(few, processor, fitting_length(processor, plan.max_length))
    model = kind.load_model(source, task.labels, seed=plan.seed, dtype=dtype)
    try:
        return better_pooling(model, data, plan, spec)
    finally:
        del model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

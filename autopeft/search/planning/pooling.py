"""What the heads of a search read: as asked for, or found by a probe before anything is trained.

Trials, finalists and baselines have it alike, so that it favours none of them.
"""

from __future__ import annotations

from collections.abc import Callable

from autopeft.assets import ModelSource
from autopeft.errors import UsageError
from autopeft.graph import build_graph
from autopeft.recipe.pooling import MEAN_POOLING, Pooling
from autopeft.search.planning.arguments import SearchArguments
from autopeft.spec import BackboneSpec
from autopeft.tasks import Task
from autopeft.tasks.encode import encode
from autopeft.training import TrainingPlan
from autopeft.training.pooling import PoolingFinding, better_pooling

__all__ = ["find_pooling", "pooling_of_search"]

_ROWS = 500
"""Training rows that a probe looks at: it has to tell two poolings apart, not to start a head."""


def pooling_of_search(
    a: SearchArguments,
    source: ModelSource,
    task: Task,
    plan: TrainingPlan,
    spec: BackboneSpec,
    processes: int,
    notify: Callable[[str], None] | None,
) -> Pooling:
    """What heads read.

    A backbone that is quantised, or in parts, is not probed, and what is to be served has to be a plain
    model: there they read what the model gives them.

    Args:
        processes: of one trial.
        notify: is told what a probe found.

    Raises:
        UsageError: the mean is asked for, and heads of the kind read several positions, or it could not be
            served.
        CompositionError: the mean is asked for, and the backbone has none to give.
    """
    if a.pooling == "mean":
        _check_mean(a, task, spec)
        return "mean"
    if a.pooling == "own" or a.serve is not None or a.quantize is not None or processes > 1:
        return "own"
    found = find_pooling(source, task, plan, spec)
    if found is None:
        return "own"
    if notify is not None:
        notify(found.sentence())
    return found.pooling


def _check_mean(a: SearchArguments, task: Task, spec: BackboneSpec) -> None:
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
    build_graph(MEAN_POOLING, spec)


def find_pooling(
    source: ModelSource, task: Task, plan: TrainingPlan, spec: BackboneSpec
) -> PoolingFinding | None:
    """Load the backbone, and see what lets a linear probe of some training rows predict the others better."""
    kind = task.task_kind
    if not (kind.pooled and kind.new_head and kind.probed):
        return None
    few, processor = task.subset(_ROWS, 1, 1, seed=plan.seed), kind.load_processor(source)
    # What does not fit the tokenizer is refused where it is trained on.
    longest = min(plan.max_length, getattr(processor, "model_max_length", plan.max_length))
    data = encode(few, processor, longest)
    model = kind.load_model(source, task.labels, seed=plan.seed)
    return better_pooling(model, data, plan, spec)

"""A look at a user's task, and what of it sharpens a recommendation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from autopeft.assets import ModelSource
from autopeft.counting import Budget
from autopeft.search.planning.pooling import FAILURES, fitting_length, probe_failed
from autopeft.search.portfolio.arguments import RecommendArguments
from autopeft.search.portfolio.choices import members
from autopeft.search.portfolio.estimates import Target
from autopeft.search.portfolio.evidence import Evidence, Key, reference_of
from autopeft.search.portfolio.sharpening import (
    Finding,
    likeness,
    shifts,
    slope_of_first_steps,
    worth_of_likeness,
)
from autopeft.search.portfolio.task_probe import TaskProbe, probe_task
from autopeft.search.portfolio.templates import FittedRecipe
from autopeft.spec import BackboneSpec
from autopeft.tasks import Task
from autopeft.tasks.encode import encode
from autopeft.training.plan import TrainingPlan

__all__ = ["SECONDS", "Sharpening", "sharpen"]

SECONDS = 45.0
"""What the measurements may take on one core, beside loading backbone and rows."""

_TRAIN_ROWS, _SELECT_ROWS = 1_000, 200


@dataclass(frozen=True)
class Sharpening:
    """What a look at a task adds.

    Attributes:
        likeness: by recorded task what its trainings count for; `None` where that is not used.
        shifts: by recipe the points that are added; `None` where that is not used.
        why: what was found, and what is not used and why, a sentence each.
    """

    likeness: Mapping[str, float] | None = None
    shifts: Mapping[Key, float] | None = None
    why: Sequence[str] = field(default_factory=tuple)


def sharpen(
    evidence: Evidence,
    spec: BackboneSpec,
    budget: Budget,
    task: Task,
    source: ModelSource,
    asked: RecommendArguments,
    leave_out: Collection[str],
    tell: Callable[[str], None],
) -> Sharpening:
    """Look at a task, as far as the recorded tasks show that it helps; what would not be used is not
    measured."""
    rows = asked.rows or len(task.splits["train"])
    target = Target(budget.limits(spec)[1] / spec.parameters, rows)
    like = worth_of_likeness(evidence, target, leave_out=leave_out)
    slope = slope_of_first_steps(evidence, leave_out=leave_out)
    said = [_line("what tasks are like", like), _line("the recipes' first gradients", slope)]
    if not like.helps and not slope.helps:
        return Sharpening(why=said)
    recipes = members(spec, budget) if slope.helps else []
    try:
        found = _measured(task, source, asked, tell, recipes)
    except FAILURES as error:
        return Sharpening(why=[f"Not sharpened by a look at the task: {probe_failed(error)}."])
    known, whole = found.features, len(found.first_steps) == len(recipes)
    if not whole:
        late = f"{SECONDS:g} s did not suffice to measure all of them"
        said[1] = f"Not sharpened by the recipes' first gradients: {late}."
    said.append(
        f"The task has {known.classes} classes and {known.tokens:.0f} tokens a text; a head on the frozen "
        f"backbone saves {100 * known.head:.0f} % of the loss of constant answers."
    )
    first = reference_of(found.first_steps)
    return Sharpening(
        likeness(evidence.without(leave_out), known) if like.helps else None,
        shifts(evidence, slope, found.first_steps, first, leave_out=leave_out)
        if first and slope.helps and whole
        else None,
        said,
    )


def _line(what: str, finding: Finding) -> str:
    if finding.helps:
        return (
            f"Sharpened by {what}: it helps on the recorded tasks, over {len(finding.by_cluster)} clusters."
        )
    return f"Not sharpened by {what}: the recorded tasks do not show that it helps."


def _measured(
    task: Task,
    source: ModelSource,
    asked: RecommendArguments,
    tell: Callable[[str], None],
    recipes: Sequence[FittedRecipe],
) -> TaskProbe:
    tell(f"Loading the backbone and up to {_TRAIN_ROWS:,} rows")
    few = task.subset(_TRAIN_ROWS, _SELECT_ROWS, 1, seed=asked.seed)
    processor = few.task_kind.load_processor(source)
    data = encode(few, processor, fitting_length(processor, asked.max_length))
    model = task.task_kind.load_model(source, task.labels, dtype=torch.float32)
    plan = TrainingPlan(steps=1, seed=asked.seed, max_length=asked.max_length, head_start="probe")
    return probe_task(model, data, recipes, plan, lambda line: tell(f"  {line}"), seconds=SECONDS)

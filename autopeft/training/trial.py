"""One trial: a recipe on a backbone, trained and scored, and the backbone as if nothing had happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from autopeft.counting import Counts
from autopeft.errors import UsageError, near
from autopeft.hybrid import Artefact, Hybrid, attach
from autopeft.recipe import Recipe, TrainingSection
from autopeft.recipe.tasks import for_tasks
from autopeft.runs.records import Sample
from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.training.checkpoint import Checkpoint
from autopeft.training.contexts import head_kept
from autopeft.training.contracts import Trainable
from autopeft.training.forward import sharing_forward, shortest_forward
from autopeft.training.full_tuning import FullFineTuning
from autopeft.training.head_start import begin_head
from autopeft.training.loop import OnScore, OnStep, ShouldStop, train
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import TrainResult
from autopeft.training.samples import asked_in
from autopeft.training.scoring import Scored, score_by_rows

__all__ = ["TrialOutcome", "full_fine_tuning", "head_only", "run_trial"]


@dataclass(frozen=True)
class TrialOutcome:
    """What came of a trial.

    Attributes:
        scores: the metric on each split that was asked for, in that order.
        counts: parameters of the hybrid.
        seconds: wall time of the whole trial: attaching, calibration, training, scoring.
        train: the training's result.
        parts: what groups of rows of each split contribute to the score there.
        losses: mean loss over the rows of each split, where the kind of task has one; not of *test* where it
            is scored by what the model writes.
        calibrated_losses: the same at the temperature that suits the rows best, but for *test*.
        samples: of the answers that the hybrid wrote to rows of the last split, where they were asked for.
        by_task: of a set of tasks, split to task to score, each in the task's own metric.
    """

    scores: Mapping[str, float]
    counts: Counts
    seconds: float
    train: TrainResult = field(repr=False)
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    losses: Mapping[str, float] = field(default_factory=dict)
    calibrated_losses: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    by_task: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def measured(self) -> dict[str, float]:
        """`step_time` in seconds and `memory` in bytes, as far as they were measured."""
        found = {"step_time": self.train.step_time, "memory": self.train.memory}
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def score(self) -> float:
        """Score on the first split, higher is better."""
        return next(iter(self.scores.values()))


def run_trial(
    model: PreTrainedModel,
    recipe: Recipe,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    splits: Sequence[str] = ("select",),
    metric: str | None = None,
    on_step: OnStep | None = None,
    on_score: OnScore | None = None,
    should_stop: ShouldStop | None = None,
    keep: Callable[[Hybrid, Mapping[str, float]], Any] | None = None,
    until: int | None = None,
    resume: Checkpoint | Callable[[Hybrid], Checkpoint] | None = None,
    policies: Sequence[Any] = (),
    samples: bool = False,
    full: bool = False,
    inputs: Mapping[str, Artefact] | None = None,
) -> TrialOutcome:
    """Start head and modules from the plan's seed, calibrate, train, score, take everything off again.

    Afterwards, also after an exception, backbone and head are bitwise what they were. A recipe without
    entries trains the head alone.

    Args:
        splits: splits to score, at least one.
        metric: that scores all but *test*, which the task's own always scores; default: the task's.
        keep: called with the trained hybrid, while it is still attached, and its scores; it may save the
            hybrid.
        samples: whether a handful of what the hybrid writes is kept, where the kind of task writes.
        until, resume: pause after so many steps, and go on from `outcome.train.checkpoint`; see `train`. What
            makes a checkpoint is called with the hybrid as it was attached. One of the last step is scored.
        policies: beside the recipe's; see `train`.
        full: every weight trains in place of what the recipe attaches, at the rates of its training section.
        inputs: what the recipe starts from, where that was opened already (see `attach`).

    Raises:
        UsageError: the recipe does not fit the model, or a split does not exist.
        NonFiniteLoss, OutOfMemory, PhaseError: see `train`.
    """

    started = time.perf_counter()
    known: dict[str, EncodedSplit] = {str(k): v for k, v in data.splits.items()}
    if not splits or isinstance(splits, str):
        raise UsageError(f"`splits` lists at least one of {', '.join(known)}, but got {splits=}.")
    for name in splits:
        if name not in known:
            raise UsageError(f"There is no split {name!r}.{near(name, known)} Splits: {', '.join(known)}.")

    splits = list(dict.fromkeys(splits))
    device, task, scored = plan.torch_device(), data.task, dict[str, Scored]()
    recipe = for_tasks(recipe, task.members)
    model.to(device)  # type: ignore[arg-type]
    with head_kept(model):
        begin_head(model, recipe, data, plan, full=full)
        hybrid: Trainable = (
            FullFineTuning(model, recipe.training)
            if full
            else attach(model, recipe, seed=plan.seed, inputs=inputs)
        )
        try:
            if callable(resume):
                assert isinstance(hybrid, Hybrid)
                resume = resume(hybrid)
            if resume is not None and resume.step == plan.steps:  # it is scored alone
                assert isinstance(hybrid, Hybrid)
                resume.fill(hybrid)
                result = TrainResult(micro_rows=resume.micro_rows)
            else:
                result = train(
                    hybrid,
                    data,
                    plan,
                    on_step=on_step,
                    on_score=on_score,
                    should_stop=should_stop,
                    until=until,
                    resume=resume,
                    policies=policies,
                )

            # Score by the shortest forward, but the test rows once, by the model as it will be used.
            dropout = plan.trains_with_dropout(hybrid.recipe.training)
            shortest = shortest_forward(hybrid, data, plan, dropout=dropout)
            for name in splits:
                test, last = name == "test", name == splits[-1]
                scored[name] = score_by_rows(
                    model,
                    known[name],
                    task.metric if test else metric or task.metric,
                    forward=sharing_forward(hybrid, known[name], task.task_kind) if test else shortest,
                    text_ids=task.text_ids(name),  # type: ignore[arg-type]  # splits that tasks have
                    loss=not test,
                    asked=asked_in(task, name) if samples and last else None,
                    batch_size=plan.eval_rows,
                    device=device,
                )
            scores = {name: found.score for name, found in scored.items()}
            counts = hybrid.counts()
            if keep is not None and isinstance(hybrid, Hybrid):
                keep(hybrid, scores)
        finally:
            hybrid.detach()
    return TrialOutcome(
        scores=scores,
        counts=counts,
        seconds=time.perf_counter() - started,
        train=result,
        parts={name: found.pseudo_values for name, found in scored.items()},
        losses={name: s.loss for name, s in scored.items() if s.loss is not None},
        calibrated_losses={
            name: s.calibrated_loss for name, s in scored.items() if s.calibrated_loss is not None
        },
        samples=scored[splits[-1]].samples,
        by_task={name: found.by_task for name, found in scored.items() if found.by_task},
    )


def head_only(
    model: PreTrainedModel,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    training: TrainingSection | None = None,
    **options: Any,
) -> TrialOutcome:
    """The baseline without any module; options are those of `run_trial`."""
    recipe = Recipe(name="head-only", training=training or TrainingSection())
    return run_trial(model, recipe, data, plan, **options)


def full_fine_tuning(
    model: PreTrainedModel,
    data: EncodedTask,
    plan: TrainingPlan,
    *,
    training: TrainingSection | None = None,
    **options: Any,
) -> TrialOutcome:
    """The baseline in which every weight trains (default rate 5e-5); options are those of `run_trial`."""
    section = training or TrainingSection(learning_rate=5e-5)
    return run_trial(
        model, Recipe(name="full-fine-tuning", training=section), data, plan, full=True, **options
    )

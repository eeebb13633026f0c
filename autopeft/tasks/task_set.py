"""Sets of tasks: several tasks that one hybrid learns together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from autopeft.errors import TaskError
from autopeft.tasks.kinds import get_metric
from autopeft.tasks.kinds.mixture import MEAN_OF_TASKS, Member, MixedSplit, Mixture, mixture_name
from autopeft.tasks.split import SPLIT_NAMES
from autopeft.tasks.task import Source, Task

__all__ = ["Mixture", "task_set"]


def task_set(tasks: Sequence[Task], mixture: Mixture | None = None) -> Task:
    """One task that stands for several: each keeps its splits, its metric and a head of its own, and the
    score is the mean of theirs. A set of one task is that task.

    Args:
        tasks: with different names, for backbones of one modality.
        mixture: how rows are drawn in training (default: each row once in an epoch, in batches of one task).

    Example:
        >>> from autopeft.tasks import load_task, task_set
        >>> both = task_set([load_task("trec"), load_task("sms-spam")])          # doctest: +SKIP
        >>> autopeft.search(task=both, budget="0.5%", model="minilm")            # doctest: +SKIP

    Raises:
        TaskError: there are none, two have one name, or they cannot be learnt together or scored as one.
    """
    if not tasks:
        raise TaskError("A set needs at least one task.")
    names = [task.name for task in tasks]
    if len(tasks) == 1:
        return tasks[0]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(f"Two tasks of a set are called {twice!r}; give each its own name.")
    heads = {task.name: task.task_kind.head for task in tasks}
    if len({head.modality for head in heads.values()}) > 1:
        raise TaskError("Tasks of a set are for one backbone, but some are of texts and some of images.")
    if len({head.new_head for head in heads.values()}) > 1:
        of_backbone = [name for name, head in heads.items() if not head.new_head]
        raise TaskError(
            f"{', '.join(of_backbone)} use the head that the backbone brings, and the other tasks new "
            "heads; a set needs one or the other."
        )
    if not heads[names[0]].new_head and len({head.auto_class for head in heads.values()}) > 1:
        raise TaskError("Tasks that use the backbone's own head need the same one.")
    for task in tasks:
        metric = get_metric(task.metric)
        if metric.own or metric.generated or metric.low < -1 or metric.high > 1:
            raise TaskError(
                "The score of a set is the mean of its tasks' metrics, which are in -1…1 and need no written "
                f"answers; {task.name} has {task.metric!r}: choose another one with metric=."
            )
    mixture = mixture or Mixture()
    if mixture.weights and len(mixture.weights) != len(tasks):
        raise TaskError(
            f"A mixture has a weight for each task or none, but got {len(mixture.weights)} for {len(tasks)}."
        )
    if mixture.batches == "mixed" and not all(head.one_state for head in heads.values()):
        other = next(name for name, head in heads.items() if not head.one_state)
        raise TaskError(
            f"Mixed batches are for heads that read one position of a row, and {other!r} has another: take "
            "homogeneous ones."
        )
    members = [
        Member(
            task.name,
            task.kind,
            task.labels,
            task.metric,
            None if task.class_weights is None else tuple(task.class_weights),
        )
        for task in tasks
    ]
    name = "+".join(names)
    digest = hashlib.sha256("\n".join(task.source.sha256 for task in tasks).encode()).hexdigest()
    return Task(
        name=name,
        kind=mixture_name(members, mixture),
        labels=(),
        splits={split: MixedSplit.of([task.splits[split] for task in tasks]) for split in SPLIT_NAMES},
        metric=MEAN_OF_TASKS.name,
        class_weights=None,
        source=Source("memory", name, digest),
    )

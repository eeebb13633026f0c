"""The task that a trained hybrid is scored on, with labels in the order that its head learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autopeft.cli.backbone import quiet_libraries
from autopeft.errors import TaskError

if TYPE_CHECKING:
    from autopeft.export.package import Saved
    from autopeft.tasks import Split, Task

__all__ = ["task_of"]


def task_of(
    saved: Saved,
    name: str | None,
    columns: Mapping[str, str | None],
    *,
    metric: str | None,
    seed: int | None,
    stand_in: bool,
    notify: Callable[[str], None],
) -> Task:
    """Load the task `name` (default: the hybrid's own, split as in training), labels in the head's order.

    The data are read as the hybrid's own kind of task, and scored with its metric unless another is given.

    Raises:
        TaskError: the task has labels that the hybrid's head does not know, or the hybrid's own rows were
            handed over in memory.
        DataError: the data are not of the hybrid's kind.
    """
    from autopeft.runs.files import read_json
    from autopeft.tasks import load_task

    quiet_libraries()
    card = saved.card
    manifest = read_json(saved.folder / "manifest.json")
    arguments: dict[str, Any] = manifest.get("arguments") or {}
    own = name is None
    if own and (card.data.get("source") or {}).get("origin") == "memory":
        raise TaskError(
            "This hybrid's rows were handed over in memory and are not kept; name data with --task."
        )
    known: Mapping[str, Any] = {**arguments, **(arguments.get("columns") or {})} if own else {}
    named = {key: value if value is not None else known.get(key) for key, value in columns.items()}
    task = load_task(
        str(manifest.get("task")) if name is None else name,
        text=named["text"],
        text_pair=named["text_pair"],
        label=named["label"],
        kind=card.kind,
        metric=metric or card.metric,
        seed=seed if seed is not None else int(arguments.get("seed") or 0),
        stand_in=stand_in,
        notify=notify,
    )
    return task if task.labels == card.labels else _relabelled(task, card.labels)


def _relabelled(task: Task, labels: tuple[str, ...]) -> Task:
    unknown = [label for label in task.labels if label not in labels]
    if unknown:
        raise TaskError(
            f"{task.name!r} has labels that the hybrid's head does not know: {', '.join(unknown[:5])}; it "
            f"knows {', '.join(labels[:10])}. Train the recipe on this task instead: `autopeft train`."
        )

    def moved(split: Split) -> Split:
        return replace(split, labels=task.task_kind.relabel(split.labels, task.labels, labels))

    splits = {name: moved(split) for name, split in task.splits.items()}
    return replace(task, labels=labels, splits=splits, class_weights=None)

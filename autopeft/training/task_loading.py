"""Loads the task that a function's arguments name."""

from __future__ import annotations

from collections.abc import Callable

from autopeft.arguments import Arguments
from autopeft.errors import UsageError
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows, Task, load_task

__all__ = ["task_from_arguments"]

_OPTIONS = (
    "text", "text_pair", "label", "kind", "label_words", "template", "metric", "class_weights", "drop_empty",
    "seed", "stand_in",
)  # fmt: skip

_READS = {  # by modality what backbones read, an example of a task and one of a backbone
    "text": ("texts", "texts with labels", "such as 'minilm'"),
    "vision": ("images", "a folder of images", "such as a ViT"),
}


def task_from_arguments(
    given: Arguments,
    notify: Callable[[str], None] | None = None,
    made: Rows | None = None,
    backbone: BackboneSpec | None = None,
) -> Task:
    """Load the task that `given.task` names, with what else `given` says of it.

    Args:
        made: rows of a task that makes them.
        backbone: that will be trained.

    Raises:
        TaskError: see `load_task`.
        UsageError: the backbone cannot be trained on the task's kind.
    """
    options = {name: getattr(given, name) for name in _OPTIONS if name in type(given).model_fields}
    task, model = given.task, given.model  # type: ignore[attr-defined]
    found = load_task(task, notify=notify, made=made, backbone=backbone, **options)
    if backbone is None:
        return found

    # Refuse a backbone that reads something else, or that the kind of task cannot be trained on.
    kind, name = found.task_kind, type(model[0]).__name__ if isinstance(model, tuple) else str(model)
    problem = kind.head.refused(backbone, name) if kind.head.modality == backbone.modality else None
    if kind.head.modality != backbone.modality:
        reads, wanted = _READS[backbone.modality], _READS[kind.head.modality]
        problem = (
            f"{name!r} is a backbone that reads {reads[0]}, and {kind.plain} is of {wanted[0]}: take a task "
            f"of {reads[0]} ({reads[1]}), or a backbone of {wanted[0]} ({wanted[2]}; --model)."
        )
    if problem is not None:
        raise UsageError(problem)
    return found

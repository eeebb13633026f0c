"""The task that a function's arguments ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopeft.arguments import Arguments
from autopeft.errors import UsageError
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows, Task, TaskKind, load_task

__all__ = ["asked_task"]

_OPTIONS = (
    "text", "text_pair", "label", "kind", "label_words", "template", "metric", "class_weights", "drop_empty",
    "seed", "stand_in",
)  # fmt: skip

_READS = {  # by modality what backbones read, an example of a task and one of a backbone
    "text": ("texts", "texts with labels", "such as 'minilm'"),
    "vision": ("images", "a folder of images", "such as a ViT"),
}


def asked_task(
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
    told = {name: getattr(given, name) for name in _OPTIONS if name in type(given).model_fields}
    task: Any = given.task  # type: ignore[attr-defined]
    found = load_task(task, notify=notify, made=made, backbone=backbone, **told)
    refused = None if backbone is None else _refused(found.task_kind, backbone, _named(given))
    if refused is not None:
        raise UsageError(refused)
    return found


def _refused(kind: TaskKind, backbone: BackboneSpec, name: str) -> str | None:
    """Why a backbone cannot be trained on a kind of task; `None` where it can."""
    if kind.head.modality == backbone.modality:
        return kind.head.refused(backbone, name)
    reads, wanted = _READS[backbone.modality], _READS[kind.head.modality]
    return (
        f"{name!r} is a backbone that reads {reads[0]}, and {kind.name} is of {wanted[0]}: take a task of "
        f"{reads[0]} ({reads[1]}), or a backbone of {wanted[0]} ({wanted[2]}; --model)."
    )


def _named(given: Arguments) -> str:
    """The backbone as the user named it, or what a live one is."""
    model: Any = given.model  # type: ignore[attr-defined]
    return type(model[0]).__name__ if isinstance(model, tuple) else str(model)

"""The task that a function's arguments ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopeft.arguments import Arguments
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows, Task, load_task

__all__ = ["asked_task"]

_OPTIONS = (
    "text", "text_pair", "label", "kind", "metric", "class_weights", "drop_empty", "seed", "stand_in",
)  # fmt: skip


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
    """
    told = {name: getattr(given, name) for name in _OPTIONS if name in type(given).model_fields}
    task: Any = given.task  # type: ignore[attr-defined]
    return load_task(task, notify=notify, made=made, backbone=backbone, **told)

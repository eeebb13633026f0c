"""From a search's arguments to its limits, and what predicting for them needs."""

from __future__ import annotations

from autopeft.assets import ModelSource, load_config, unquantized
from autopeft.resources import Limits, head_on_meta
from autopeft.resources.files import Head
from autopeft.resources.limits import read_size, read_span
from autopeft.search.planning.arguments import SearchArguments
from autopeft.tasks import Task

__all__ = ["limits_of", "task_head"]


def limits_of(a: SearchArguments) -> Limits:
    """The limits that these arguments set.

    Raises:
        UsageError: one cannot be read.
    """
    return Limits(
        memory=None if a.max_memory is None else read_size("max_memory", a.max_memory),
        step_time=None if a.max_step_time is None else read_span("max_step_time", a.max_step_time),
        latency=None if a.max_latency is None else read_span("max_latency", a.max_latency),
        file=None if a.max_file is None else read_size("max_file", a.max_file),
        mergeable=a.mergeable,
    )


def task_head(source: ModelSource, task: Task) -> Head:
    """The parameters of the head that the task puts on the backbone, without memory."""
    config = unquantized(load_config(source), source.alias or source.path)
    for name, value in task.task_kind.config(task.labels).items():
        setattr(config, name, value)
    return head_on_meta(config, task.task_kind.auto_class)

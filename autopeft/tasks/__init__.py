"""Tasks: data sets with nested splits, their tokens and their metrics."""

from __future__ import annotations

from autopeft.tasks.encode import EncodedSplit, EncodedTask, encode_texts
from autopeft.tasks.load import ClassWeights, TaskInfo, list_tasks, load_task
from autopeft.tasks.metrics import METRICS, Metric, compute
from autopeft.tasks.task import SPLIT_NAMES, Kind, Rows, Source, Split, SplitName, Task

__all__ = [
    "METRICS",
    "SPLIT_NAMES",
    "ClassWeights",
    "EncodedSplit",
    "EncodedTask",
    "Kind",
    "Metric",
    "Rows",
    "Source",
    "Split",
    "SplitName",
    "Task",
    "TaskInfo",
    "compute",
    "encode_texts",
    "list_tasks",
    "load_task",
]

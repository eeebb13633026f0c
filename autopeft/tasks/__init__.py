"""Tasks: data sets with nested splits, their tokens and their metrics."""

from __future__ import annotations

from autopeft.tasks.encode import EncodedSplit, EncodedTask, encode_texts
from autopeft.tasks.kinds import TaskKind, get_kind, get_metric, kind_names, register_kind, register_metric
from autopeft.tasks.load import ClassWeights, TaskInfo, cluster_of, list_tasks, load_task
from autopeft.tasks.metrics import METRICS, Metric, compute
from autopeft.tasks.scored import ScoredSplit
from autopeft.tasks.task import SPLIT_NAMES, Reading, Rows, Source, Split, SplitName, Task
from autopeft.tasks.task_set import Mixture, task_set

__all__ = [
    "METRICS",
    "SPLIT_NAMES",
    "ClassWeights",
    "EncodedSplit",
    "EncodedTask",
    "Metric",
    "Mixture",
    "Reading",
    "Rows",
    "ScoredSplit",
    "Source",
    "Split",
    "SplitName",
    "Task",
    "TaskInfo",
    "TaskKind",
    "cluster_of",
    "compute",
    "encode_texts",
    "get_kind",
    "get_metric",
    "kind_names",
    "list_tasks",
    "load_task",
    "register_kind",
    "register_metric",
    "task_set",
]

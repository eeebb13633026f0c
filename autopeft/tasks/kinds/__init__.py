"""Kinds of tasks, as plug-ins: what differs between classification, regression and others stands here alone.

`contract` says what a kind is and how to write one.
"""

from __future__ import annotations

from autopeft.tasks.kinds.answers import IGNORED
from autopeft.tasks.kinds.breakdown import Breakdown, class_breakdowns
from autopeft.tasks.kinds.contract import ClassWeights, TaskKind
from autopeft.tasks.kinds.generation import Generation
from autopeft.tasks.kinds.loss import Loss
from autopeft.tasks.kinds.metric import Metric, ScoredRows, jackknife_variance, shrunk
from autopeft.tasks.kinds.own_metric import function_of, metric_name, own_metric
from autopeft.tasks.kinds.registry import (
    METRICS,
    choose_kind,
    get_kind,
    get_metric,
    kind_names,
    kind_of_model,
    kind_on,
    kinds_of,
    metrics_of,
    register_kind,
    register_metric,
    register_options,
    use_metric,
    writing_kind,
)

__all__ = [
    "IGNORED",
    "METRICS",
    "Breakdown",
    "ClassWeights",
    "Generation",
    "Loss",
    "Metric",
    "ScoredRows",
    "TaskKind",
    "choose_kind",
    "class_breakdowns",
    "function_of",
    "get_kind",
    "get_metric",
    "jackknife_variance",
    "kind_names",
    "kind_of_model",
    "kind_on",
    "kinds_of",
    "metric_name",
    "metrics_of",
    "own_metric",
    "register_kind",
    "register_metric",
    "register_options",
    "shrunk",
    "use_metric",
    "writing_kind",
]

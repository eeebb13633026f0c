"""Kinds of tasks, as plug-ins: what differs between classification, regression and others stands here alone.

`task_kind` says what a kind is and how to write one.
"""

from __future__ import annotations

from autopeft.tasks.kinds.class_metrics import class_breakdowns
from autopeft.tasks.kinds.conversation_tokens import IGNORED
from autopeft.tasks.kinds.encoder import Encoder
from autopeft.tasks.kinds.generation import Generation
from autopeft.tasks.kinds.generative import GenerativeScorer, generative_scorer
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import (
    Metric,
    ScoredRows,
    function_of,
    jackknife_variance,
    metric_name,
    own_metric,
    shrunk,
)
from autopeft.tasks.kinds.registry import (
    METRICS,
    choose_kind,
    generative_kind,
    get_kind,
    get_metric,
    is_kind,
    kind_names,
    kind_of_model,
    kind_on,
    kinds_of,
    metrics_of,
    register_kind,
    register_metric,
    register_options,
    use_metric,
)
from autopeft.tasks.kinds.schema import Schema
from autopeft.tasks.kinds.scorer import Breakdown, ClassWeights, Loss, Scorer
from autopeft.tasks.kinds.task_kind import TaskKind

__all__ = [
    "IGNORED",
    "METRICS",
    "Breakdown",
    "ClassWeights",
    "Encoder",
    "Generation",
    "GenerativeScorer",
    "Head",
    "Loss",
    "Metric",
    "Schema",
    "ScoredRows",
    "Scorer",
    "TaskKind",
    "choose_kind",
    "class_breakdowns",
    "function_of",
    "generative_kind",
    "generative_scorer",
    "get_kind",
    "get_metric",
    "is_kind",
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
]

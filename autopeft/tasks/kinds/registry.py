"""Kinds of tasks and metrics by name, those of other packages included."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from autopeft.errors import DataError, TaskError
from autopeft.plugins import Registry, import_modules
from autopeft.spec import BackboneSpec
from autopeft.tasks.kinds.head import Head
from autopeft.tasks.kinds.metric import Metric
from autopeft.tasks.kinds.task_kind import TaskKind, options_in, plain_name
from autopeft.tasks.table import ColumnNames, Table

__all__ = [
    "KINDS",
    "METRICS",
    "choose_kind",
    "generative_kind",
    "get_kind",
    "get_metric",
    "is_kind",
    "kind_names",
    "kind_of_model",
    "kind_on",
    "kinds_of",
    "metrics_of",
    "register_kind",
    "register_metric",
    "register_options",
    "use_metric",
]

KINDS: Registry[TaskKind] = Registry(
    error=TaskError,
    malformed="A kind's name is letters, digits and underscores, but got {name!r}.",
    taken="There is already a kind of task {name!r}, by {by}.",
    unknown="There is no kind of task {name!r}.{near} Kinds: {names}; one from another package registers "
    "through the entry-point group 'autopeft.task_kinds'.",
    group="autopeft.task_kinds",
    built_in=lambda: import_modules("autopeft.tasks.kinds"),
    well_formed=str.isidentifier,
    again=lambda there, new: False,
)
# Metrics come with the kinds.
METRICS: Registry[Metric] = Registry(
    error=TaskError,
    malformed="A metric needs a name, but got {name!r}.",
    taken="There is already another metric {name!r}; give this one its own name.",
    unknown="Unknown metric={name!r}; there are {in_order}.{near}",
    built_in=KINDS.load,
    well_formed=bool,
    again=lambda there, new: bool(there == new),
)
_BY_KIND: dict[str, dict[str, None]] = {}  # names of metrics, in order
_OWN: dict[str, Metric] = {}  # functions of the user's, by name; a later one of the same name takes its place
Maker: TypeAlias = Callable[[Mapping[str, str]], TaskKind]
_OPTIONS: dict[
    str, tuple[tuple[str, ...], Maker]
] = {}  # by kind: their names, and what makes the kind of them


# Registering
# ------------------------------------------------------------------------------------------------------


def register_kind(kind: TaskKind) -> TaskKind:
    """Register a kind of task under its name, and its metrics with it.

    Raises:
        TaskError: the name is no identifier or is taken, it has no metric, or a metric is refused (see
            `register_metric`).
    """
    KINDS.check_name(kind.name, kind.owner)
    metrics = getattr(kind.scorer, "metrics", ())
    if not metrics:
        raise TaskError(f"Kind {kind.name!r} needs a metric: `metrics` of {type(kind.scorer).__qualname__}.")
    for metric in metrics:
        _check(metric)
    KINDS.enter(kind.name, kind, kind.owner)
    for metric in metrics:
        METRICS.enter(metric.name, metric)
        _BY_KIND.setdefault(kind.name, {})[metric.name] = None
    return kind


def register_metric(metric: Metric, *, kind: str) -> Metric:
    """Add a metric to a kind of task.

    Raises:
        TaskError: there is no such kind, another metric has this name, or it could fail after training: it
            has neither a finite range nor a variance, or its variance is not finite somewhere in the range.
    """
    get_kind(kind)
    _check(metric)
    METRICS.enter(metric.name, metric)
    _BY_KIND.setdefault(kind, {})[metric.name] = None
    return metric


def register_options(kind: str, *names: str) -> Callable[[Maker], Maker]:
    """Let a kind of task be told more, behind a question mark in its name (see `task_kind`), as a
    decorator of the function that makes the kind of these options; its `name` has them too.

    Args:
        kind: under which the plain one is registered, where there is one.
        names: of the options; the function gets those that were told, as texts.

    Raises:
        TaskError: the kind can be told something already.
    """

    def enter(make: Maker) -> Maker:
        if kind in _OPTIONS:
            raise TaskError(f"The kind {kind!r} can be told {', '.join(_OPTIONS[kind][0])} already.")
        _OPTIONS[kind] = names, make
        return make

    return enter


def _check(metric: Metric) -> None:
    METRICS.check_name(metric.name, metric)
    if not metric.low < metric.high:
        raise TaskError(f"Metric {metric.name!r} needs low < high, but got {metric.low} and {metric.high}.")
    finite = math.isfinite(metric.low) and math.isfinite(metric.high)
    if metric.variance is None:
        if not finite:
            raise TaskError(
                f"Metric {metric.name!r} has no finite range, so it needs a `variance`: searches compare "
                "scores and have to know how much one varies over other rows."
            )
        return
    low, high = (metric.low if finite else -10.0), (metric.high if finite else 10.0)
    scores = np.linspace(max(low, metric.low), min(high, metric.high), 21).tolist()
    for rows, score in product(
        (_Rows(1), _Rows(2, (1, 1)), _Rows(300, (100, 200)), _Rows(300, (0, 300))), scores
    ):
        where = f"for {score=} on {rows.rows} rows"
        try:
            found = float(metric.variance(score, rows))
        except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise TaskError(f"The variance of metric {metric.name!r} fails {where}: {error!r}.") from error
        if not math.isfinite(found) or found < 0:
            raise TaskError(f"The variance of metric {metric.name!r} is {found} {where}.")


@dataclass(frozen=True)
class _Rows:
    """Rows to try a variance on."""

    rows: int
    classes: tuple[int, ...] = ()
    labels: NDArray[Any] | None = None


# Looking up
# ------------------------------------------------------------------------------------------------------


def get_kind(name: str) -> TaskKind:
    """The kind of task registered under `name`, told the options behind a question mark where there are some
    (see `register_options`).

    Raises:
        TaskError: there is none, and the message names near matches; or an option is refused.
    """
    return _told(name) if "?" in name else KINDS.find(name)


@lru_cache(maxsize=64)
def _told(name: str) -> TaskKind:
    KINDS.load()
    plain = plain_name(name)
    if plain not in _OPTIONS:
        kind = KINDS.find(plain)
        options_in(name, ())
        return kind
    names, make = _OPTIONS[plain]
    return make(options_in(name, names))


def is_kind(name: str) -> bool:
    """Whether there is a kind of that name, whatever options it is told."""
    KINDS.load()
    return plain_name(name) in (*KINDS.names(), *_OPTIONS)


def kind_names() -> tuple[str, ...]:
    """Names of all kinds of tasks, sorted."""
    return KINDS.names()


def kind_of_model(config: Any, architecture: str | None = None) -> tuple[TaskKind, tuple[str, ...]]:
    """The kind of task that a model's configuration was made for, and the names of its labels.

    Args:
        architecture: the model's class, by which kinds with other heads are told apart; a class of another
            name counts as one that classifies texts.

    Raises:
        TaskError: no kind knows it.
    """
    kinds = [get_kind(name) for name in kind_names()]
    # An auto class loads classes that are called as it, such as `ForTokenClassification`.
    heads = {kind.name: kind.head.auto_class.__name__.removeprefix("AutoModel") for kind in kinds}
    own = [kind for kind in kinds if architecture and architecture.endswith(heads[kind.name])]
    for kind in own or [kind for kind in kinds if kind.head.auto_class is Head.auto_class]:
        labels = kind.head.names_in(config)
        if labels is not None:
            return kind, labels
    raise TaskError(
        f"No kind of task is known for a model with problem_type={config.problem_type!r}; kinds are "
        f"{', '.join(kind_names())}."
    )


def generative_kind(architecture: str) -> TaskKind | None:
    """The kind of task whose models write and are of this class of transformers, with the head that the
    backbone brings: a configuration does not tell it. `None` where there is none."""
    for name in kind_names():
        kind = get_kind(name)
        known = getattr(getattr(kind.head.auto_class, "_model_mapping", None), "_model_mapping", {})
        classes = {c for value in known.values() for c in ([value] if isinstance(value, str) else value)}
        if kind.scorer.writes and not kind.head.new_head and architecture in classes:
            return kind
    return None


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        TaskError: there is none; the message names near matches.
    """
    if name in _OWN:
        return _OWN[name]
    if ":" in name:
        raise TaskError(
            f"The metric {name!r} is a function of the user's own, and no file decides what is imported: "
            "give it again, with --metric module:function on the command line or metric=function in Python."
        )
    return METRICS.find(name)


def use_metric(metric: Metric) -> Metric:
    """Let a function of the user's be found by its name in this process."""
    _OWN[metric.name] = metric
    return metric


def metrics_of(kind: str) -> tuple[str, ...]:
    """Names of the metrics of a kind of task."""
    get_kind(kind)
    return tuple(_BY_KIND.get(plain_name(kind), ()))


def kinds_of(metric: str) -> tuple[str, ...]:
    """Names of the kinds that a metric scores, sorted; none for an unknown metric."""
    KINDS.load()
    return tuple(sorted(kind for kind, names in _BY_KIND.items() if metric in names))


def choose_kind(
    tables: Mapping[str, Table],
    named: ColumnNames,
    *,
    kind: str | None = None,
    metric: str | None = None,
    backbone: BackboneSpec | None = None,
) -> TaskKind:
    """The kind of a user's tables: the one that was named; else, of those that the metric scores, the one
    that claims the tables most surely. Where the backbone cannot be trained on it, another one that learns
    the same rows takes its place (see `kind_on`).

    Args:
        backbone: that will be trained, where it is known.

    Raises:
        TaskError: there is no such kind.
        DataError: two kinds claim the tables equally.
    """
    if kind is not None:
        return get_kind(kind)
    asked = kinds_of(metric) if metric is not None else ()
    candidates: Sequence[str] = asked or kind_names()
    if len(candidates) == 1:
        return get_kind(candidates[0])
    claims = {name: get_kind(name).schema.claim(tables, named) for name in candidates}
    best = [name for name in candidates if claims[name] == max(claims.values())]
    if len(best) > 1:
        raise DataError(
            f"{tables['train'].where} could be of the kinds {' and '.join(best)}: say which with --kind."
        )
    return kind_on(backbone, get_kind(best[0]), tables, named)


def kind_on(
    backbone: BackboneSpec | None, kind: TaskKind, tables: Mapping[str, Table], named: ColumnNames
) -> TaskKind:
    """The kind itself, or where a backbone cannot be trained on it another one that learns the same of rows
    (`Schema.learns`), claims the tables and takes the backbone. Where there is none, loading the backbone
    says why it cannot be trained."""
    if backbone is None or kind.schema.learns is None or kind.head.refused(backbone, "") is None:
        return kind
    for name in kind_names():
        other = get_kind(name)
        if (
            other.schema.learns == kind.schema.learns
            and other.head.refused(backbone, "") is None
            and other.schema.claim(tables, named)
        ):
            return other
    return kind

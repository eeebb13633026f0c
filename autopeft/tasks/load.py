"""Tasks by name: GLUE and other data sets from the hub, packaged ones, and a user's own files."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autopeft.assets import Notify, hub_answers
from autopeft.errors import DataError, TaskError, near
from autopeft.tasks.files import SUFFIXES, read_file, read_folder
from autopeft.tasks.glue import GLUE, GlueTask, canonical, glue_available, read_glue, read_hub
from autopeft.tasks.metrics import check_metric
from autopeft.tasks.packaged import PACKAGED, Packaged, read_packaged
from autopeft.tasks.splits import SELECT_LIMIT, cut
from autopeft.tasks.table import RawRows, Table, choose_columns, encode_labels, read_rows
from autopeft.tasks.task import Kind, Labels, Rows, Source, Split, SplitName, Task, rows_sha256

__all__ = ["ClassWeights", "TaskInfo", "list_tasks", "load_task"]

ClassWeights = Literal["balanced"] | Sequence[float] | None
_log = logging.getLogger("autopeft")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_DEFAULT_METRIC: dict[Kind, str] = {"classification": "accuracy", "regression": "pearson"}


@dataclass(frozen=True)
class TaskInfo:
    """One line of the list of tasks."""

    name: str
    origin: Literal["hub", "package"]
    rows: int
    classes: int
    metric: str
    licence: str
    summary: str


@dataclass(frozen=True)
class _Asked:
    """The options of `load_task` that shape a task, whatever its data."""

    metric: str | None
    class_weights: ClassWeights
    seed: int
    rows: Rows | None


def load_task(
    name: str,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    metric: str | None = None,
    class_weights: ClassWeights = None,
    seed: int = 0,
    rows: Rows | None = None,
    stand_in: bool = True,
    notify: Notify | None = None,
) -> Task:
    """Load a task and split it into train, select and test, nested and stratified.

    Args:
        name: a GLUE task (from the hub where it answers), a packaged task, a file (CSV, TSV, JSON, JSON
            lines, Parquet), a folder in the hub's layout, or `owner/name[:config]` on the hub.
        text, text_pair, label: columns of a user's data, where their names are not obvious.
        metric: a name of `METRICS` instead of the task's own.
        class_weights: "balanced", or one positive number per class.
        seed: of the splits. Where validation and test are given, they are used: validation alone becomes
            *test* (as in GLUE) and *select* is cut from train (a tenth, 2,000 rows at most). One split
            alone is cut 80/10/10.
        rows: at most so many rows of each split.
        stand_in: whether a packaged task may stand in for a hub task that cannot be had; the task's source
            records it.
        notify: gets one line when something is downloaded or stands in (default: the `autopeft` logger).

    Raises:
        TaskError: the task is unknown, cannot be had here, or an option does not fit it.
        DataError: the user's data are not what the task needs.
        AssetError: packaged data could not be fetched.
    """
    asked = _Asked(metric, class_weights, seed, rows)
    tell = notify or _log.warning
    named = any(column is not None for column in (text, text_pair, label))
    short = canonical(name)
    if short in GLUE or name in PACKAGED:
        if named:
            raise TaskError(
                f"The task {name!r} has columns of its own: text, text-pair and label are for files."
            )
        return (
            _glue(GLUE[short], asked, stand_in, tell)
            if short in GLUE
            else _packaged(PACKAGED[name], asked, tell)
        )
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_tables(read_folder(path), name, "file", (text, text_pair, label), asked)
    if path.is_file():
        return _from_tables({"train": read_file(path)}, name, "file", (text, text_pair, label), asked)
    if path.suffix.lower() in SUFFIXES:
        raise TaskError(f"There is no file {name}.")
    if _HUB_NAME.fullmatch(name) is not None and hub_answers():
        repository, _, config = name.partition(":")
        return _from_tables(
            read_hub(repository, config or None), name, "hub", (text, text_pair, label), asked
        )
    raise TaskError(
        f"Unknown task {name!r}: packaged are {', '.join(PACKAGED)}; from the hub {', '.join(GLUE)} and "
        f"`owner/name` where it answers; else a file or folder that exists.{near(name, [*PACKAGED, *GLUE])}"
    )


def list_tasks() -> list[TaskInfo]:
    """Every task that has a name, packaged ones first; reads and fetches nothing."""
    listed = [
        TaskInfo(t.name, "package", t.rows, t.classes, t.metric, t.licence, t.summary)
        for t in PACKAGED.values()
    ]
    terms = "see GLUE; each data set keeps its own terms"
    return listed + [
        TaskInfo(t.name, "hub", t.rows, t.classes, t.metric, terms, t.summary) for t in GLUE.values()
    ]


def _packaged(task: Packaged, asked: _Asked, tell: Notify, source: Source | None = None) -> Task:
    texts, labels = read_packaged(task, tell)
    raw = RawRows(task.name, texts, None, list(labels))
    kind, classes, encoded = encode_labels([raw], "accuracy", task.labels)
    origin = Source("package", task.name, rows_sha256(texts, None, labels), task.licence)
    if source is not None:
        origin = Source("package", task.name, origin.sha256, task.licence, source.stand_in_for, source.notice)
    splits = _arrange({"train": raw}, encoded, kind, asked.seed)
    return _finished(task.name, kind, classes, splits, task.metric, origin, asked)


def _glue(task: GlueTask, asked: _Asked, stand_in: bool, tell: Notify) -> Task:
    if glue_available(task):
        columns = (task.text, task.text_pair, "label")
        return _from_tables(read_glue(task), task.name, "hub", columns, asked, metric=task.metric)
    missing = f"The task {task.name!r} comes from the hub, which does not answer."
    if task.stand_in is None or not stand_in:
        reason = "Stand-ins are switched off." if task.stand_in else "No packaged task stands in for it."
        raise TaskError(
            f"{missing} {reason} Packaged tasks: {', '.join(PACKAGED)}; a local folder works as well."
        )
    twin = PACKAGED[task.stand_in]
    notice = (
        f"{missing} The packaged task {twin.name!r} stands in for it ({twin.rows:,} rows, another data set): "
        f"its scores are not comparable with those of {task.name!r}."
    )
    tell(notice)
    return _packaged(twin, asked, tell, Source("package", twin.name, "", None, task.name, notice))


def _from_tables(
    tables: dict[str, Table],
    name: str,
    origin: Literal["hub", "file"],
    columns: tuple[str | None, str | None, str | None],
    asked: _Asked,
    metric: str | None = None,
) -> Task:
    chosen = choose_columns(tables["train"], *columns)
    raws = {split: read_rows(table, chosen) for split, table in tables.items()}
    rule = asked.metric or metric
    names = tables["train"].label_names.get(chosen.label, ())
    kind, classes, encoded = encode_labels(list(raws.values()), rule, names)
    parts = list(raws.values())
    texts = [text for part in parts for text in part.texts]
    pairs = None if chosen.text_pair is None else [pair for part in parts for pair in part.pairs or []]
    digest = rows_sha256(texts, pairs, [label for part in parts for label in part.labels])
    splits = _arrange(raws, encoded, kind, asked.seed)
    return _finished(name, kind, classes, splits, metric, Source(origin, name, digest), asked)


def _arrange(
    raws: dict[str, RawRows],
    labels: list[Labels],
    kind: Kind,
    seed: int,
) -> dict[SplitName, Split]:
    given = {
        name: Split(raw.texts, raw.pairs, part)
        for (name, raw), part in zip(raws.items(), labels, strict=True)
    }
    train = given["train"]
    rows = (train.texts, train.pairs, train.labels)
    tenth = max(1, round(len(train) / 10))
    if "validation" in given and "test" in given:
        return {"train": train, "select": given["validation"], "test": given["test"]}
    held_out = given.get("test", given.get("validation"))
    if held_out is not None:
        select, rest = cut(*rows, kind, [min(tenth, SELECT_LIMIT)], seed)
        return {"train": train.take(rest), "select": train.take(select), "test": held_out}
    test, select, rest = cut(*rows, kind, [tenth, tenth], seed)
    return {"train": train.take(rest), "select": train.take(select), "test": train.take(test)}


def _finished(
    name: str,
    kind: Kind,
    classes: tuple[str, ...],
    splits: dict[SplitName, Split],
    metric: str | None,
    source: Source,
    asked: _Asked,
) -> Task:
    chosen = asked.metric or metric or _DEFAULT_METRIC[kind]
    check_metric(chosen, kind, len(classes))
    if kind == "classification" and len(set(splits["train"].labels)) < 2:
        raise DataError(f"{name}: the train split has one class only after splitting; more rows are needed.")
    weights = _weights(asked.class_weights, kind, splits["train"], classes)
    task = Task(name, kind, classes, splits, chosen, weights, source)
    wanted = asked.rows
    return task if wanted is None else task.subset(wanted.train, wanted.select, wanted.test, asked.seed)


def _weights(asked: ClassWeights, kind: Kind, train: Split, classes: tuple[str, ...]) -> list[float] | None:
    if asked is None:
        return None
    if kind == "regression":
        raise TaskError("Class weights are for classification, but the task is regression.")
    if isinstance(asked, str):
        if asked != "balanced":
            raise TaskError(f"class_weights={asked!r} is neither 'balanced' nor a list of numbers.")
        counts = Counter(train.labels)
        if empty := [name for i, name in enumerate(classes) if counts[i] == 0]:
            raise TaskError(
                f"Balanced weights need every class in train; none of {', '.join(map(repr, empty))} is."
            )
        return [len(train) / (len(classes) * counts[i]) for i in range(len(classes))]
    weights = [float(weight) for weight in asked]
    if len(weights) != len(classes) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise TaskError(
            f"{len(classes)} positive class weights are needed ({', '.join(classes)}), but got {weights}."
        )
    return weights

"""Tasks: GLUE and other data sets from the hub, packaged ones, a user's own files, and rows in memory."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from autopeft.assets import Notify, hub_answers
from autopeft.errors import TaskError, near
from autopeft.foreign import local_path
from autopeft.spec import BackboneSpec
from autopeft.tasks.files import SUFFIXES, read_file
from autopeft.tasks.folders import read_folder
from autopeft.tasks.glue import GLUE, GLUE_REPOSITORY, GlueTask, canonical, glue_available, read_hub
from autopeft.tasks.gym import GYM, gym_kind, parse_gym, read_gym
from autopeft.tasks.kinds import (
    ClassWeights,
    TaskKind,
    choose_kind,
    get_kind,
    kind_on,
    metrics_of,
    own_metric,
    use_metric,
)
from autopeft.tasks.kinds.task_kind import plain_name
from autopeft.tasks.kinds.text_metrics import EXACT_MATCH
from autopeft.tasks.kinds.verbaliser import WordsData, kind_with_words
from autopeft.tasks.memory import describe, tables_in
from autopeft.tasks.metrics import check_metric
from autopeft.tasks.packaged import PACKAGED, Packaged, read_splits
from autopeft.tasks.several import named_tasks
from autopeft.tasks.splits import SELECT_LIMIT, cut
from autopeft.tasks.table import ColumnNames, RawRows, Table, empty_rows
from autopeft.tasks.task import Reading, Rows, Source, Split, SplitName, Task, rows_sha256
from autopeft.tasks.task_set import task_set
from autopeft.tasks.translations import with_languages

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from pandas import DataFrame

__all__ = ["ClassWeights", "TaskInfo", "cluster_of", "list_tasks", "load_task"]

OwnMetric: TypeAlias = Callable[[list[Any], list[Any]], float]
_log = logging.getLogger("autopeft")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_MEMORY = "memory"
_PROMPTS = "causal_lm"  # the kind of procedural tasks


@dataclass(frozen=True)
class TaskInfo:
    """One line of the list of tasks; those of one `cluster` share texts, `None` where it is not known."""

    name: str
    origin: Literal["hub", "package"]
    rows: int
    classes: int
    metric: str
    licence: str
    summary: str
    cluster: str | None


@dataclass(frozen=True)
class _Options:
    """The options of `load_task` that shape a task, whatever its data."""

    kind: str | None
    metric: str | None
    own_metric: OwnMetric | None
    class_weights: ClassWeights
    seed: int
    rows: Rows | None
    drop_empty: bool
    scored_by: Sequence[str] | None = None
    made: Rows | None = None
    backbone: BackboneSpec | None = None
    like: ColumnNames | None = None


def load_task(
    task: str | Path | Dataset | DatasetDict | DataFrame | Task,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    kind: str | None = None,
    label_words: WordsData | None = None,
    template: str | None = None,
    metric: str | OwnMetric | None = None,
    class_weights: ClassWeights = None,
    drop_empty: bool = False,
    seed: int = 0,
    rows: Rows | None = None,
    scored_by: Sequence[str] | None = None,
    like: ColumnNames | None = None,
    made: Rows | None = None,
    stand_in: bool = True,
    backbone: BackboneSpec | None = None,
    notify: Notify | None = None,
) -> Task:
    """Load a task and split it into train, select and test, nested and stratified.

    Args:
        task: a GLUE task (from the hub where it answers), a packaged task, a procedural one
            (`gym:chain_sum?max_terms=3`), a file (CSV, TSV, JSON, JSON lines, Parquet), a folder in the hub's
            layout, or `owner/name[:config]` on the hub; several of these, separated by commas, or a YAML file
            of several, make a set (`autopeft.tasks.task_set`); or rows in memory, as a `datasets.Dataset`, a
            `DatasetDict` or a pandas `DataFrame`, or a task that was loaded already, such as a set
            (`autopeft.tasks.task_set`). Only who has these can load the task again.
        text, text_pair, label: columns of a user's data, where their names are not obvious.
        kind: of task, a name of `autopeft.tasks.kind_names()`; default: the kind that the metric is for, or
            what the labels look like (see `Schema.claim`).
        label_words, template: a word for each class, which a language model predicts in the place of a head
            (see `LabelWords`), and the text around (see `Template`; default: the `backbone`'s).
        metric: a name of `METRICS` instead of the task's own; or a function of predictions and references,
            two lists, whose value is higher the better.
        class_weights: "balanced", or one positive number per class.
        drop_empty: whether rows of a user's data without a text or a label are left out, not refused.
        seed: of the splits. Those that are given are used: validation alone becomes *test* (as in GLUE), and
            *select* is cut from train (a tenth, 2,000 rows at most). One split alone is cut 80/10/10. Rows of
            one text stay together where they are cut, of data without a name here also copies that differ by
            white space, case or a full stop (see `autopeft.tasks.copies`).
        rows: at most so many rows of each split.
        scored_by: class names of the head that scores the rows, where nothing is trained on them: one split
            alone is then *test* as a whole, however small, and some classes may be absent.
        like: columns of other data, which are meant where none is named and a user's data have them.
        made: rows of each split of a task that makes its own (`gym:…`; default: 8,000, 1,000 and 1,000).
        stand_in: whether a packaged task may stand in for one of the hub.
        backbone: that will be trained, where it is known; it decides between kinds that learn the same rows.
        notify: gets one line when something is downloaded or stands in (default: the `autopeft` logger).

    Raises:
        TaskError: the task or its kind is unknown, cannot be had here, or an option does not fit it.
        DataError: the user's data are not what the task needs.
        AssetError: packaged data could not be fetched.
    """
    several = named_tasks(str(task)) if isinstance(task, (str, Path)) else None
    if several is not None:
        tasks, mixture = several
        common: dict[str, Any] = {
            "seed": seed, "made": made, "stand_in": stand_in, "backbone": backbone, "notify": notify
        }  # fmt: skip
        loaded = [(one, load_task(one.task, **one.options(), **common)) for one in tasks]
        both = task_set([replace(t, name=one.name or t.name) for one, t in loaded], mixture)
        task = replace(both, source=replace(both.source, origin="several", name=str(task)))
    if isinstance(task, Task):
        given = {
            "text": text, "text_pair": text_pair, "label": label, "label_words": label_words,
            "template": template, "class_weights": class_weights,
            "kind": None if kind in (task.kind, plain_name(task.kind)) else kind,
            "metric": None if metric == task.metric else metric,
        }  # fmt: skip
        late = [what for what, value in given.items() if value is not None]
        late += ["drop_empty"] if drop_empty else []
        if late and several is not None:
            raise TaskError(
                f"{task.source.name} names several tasks, and {', '.join(late)} would be said of each; say "
                "it in a YAML file, with the task that it is for."
            )
        if late:
            raise TaskError(
                f"The task {task.name!r} is loaded already, so {', '.join(late)} would come too late: say it "
                "where the task is loaded."
            )
        return task if rows is None else task.subset(rows.train, rows.select, rows.test, seed)
    own, name = (metric, None) if callable(metric) else (None, metric)
    kind = kind_with_words(kind, label_words, template)
    options = _Options(
        kind, name, own, class_weights, seed, rows, drop_empty, scored_by, made, backbone, like
    )
    named = ColumnNames(text, text_pair, label)
    if not isinstance(task, (str, Path)):
        where = describe(task)
        return _from_tables(tables_in(task), _MEMORY, named, options, origin="memory", where=where)
    name, tell = str(task), notify or _log.warning
    short = canonical(name)
    if short in GLUE or name in PACKAGED or name.startswith(GYM):
        if named != ColumnNames():
            raise TaskError(
                f"The task {name!r} has columns of its own: text, text-pair and label are for files."
            )
        if name.startswith(GYM):
            return _gym(name, options)
        if short in GLUE:
            return _glue(GLUE[short], options, stand_in, tell)
        return _packaged(PACKAGED[name], options, tell)
    path = local_path(name, TaskError)
    if path.is_dir():
        return _from_tables(read_folder(path), name, named, options)
    if path.is_file():
        return _from_tables({"train": read_file(path)}, name, named, options)
    if path.suffix.lower() in SUFFIXES:
        raise TaskError(f"There is no file {name}.")
    if _HUB_NAME.fullmatch(name) is not None and hub_answers():
        repository, _, config = name.partition(":")
        return _from_tables(read_hub(repository, config or None), name, named, options, origin="hub")
    raise TaskError(
        f"Unknown task {name!r}: packaged are {', '.join(PACKAGED)}; from the hub {', '.join(GLUE)} and "
        f"`owner/name` where it answers; procedural {GYM}NAME; else a file or folder "
        f"that exists.{near(name, [*PACKAGED, *GLUE])}"
    )


def list_tasks() -> list[TaskInfo]:
    """Every task that has a name, packaged ones first; reads and fetches nothing."""
    listed = [
        TaskInfo(t.name, "package", t.rows, t.classes, t.metric, t.licence, t.summary, t.cluster)
        for t in PACKAGED.values()
    ]
    terms = "see GLUE; each data set keeps its own terms"
    return listed + [
        TaskInfo(t.name, "hub", t.rows, t.classes, t.metric, terms, t.summary, t.cluster)
        for t in GLUE.values()
    ]


def cluster_of(name: str) -> str | None:
    """The cluster of a task that has a name: tasks of one cluster share texts. `None` for all other data, of
    which nothing is known."""
    if name in PACKAGED:
        return PACKAGED[name].cluster
    if name.startswith(GYM):
        return name.partition("?")[0]
    found = GLUE.get(canonical(name))
    return None if found is None else found.cluster


def _packaged(task: Packaged, options: _Options, tell: Notify, source: Source | None = None) -> Task:
    text, label = task.columns
    tables = {}
    for name, (texts, labels) in read_splits(task, tell).items():
        same = {column: [value] * len(texts) for column, value in task.same.items()}
        tables[name] = Table(task.name, {**same, text: texts, **({label: labels} if labels else {})}, {})
    named = ColumnNames()
    kind = (
        get_kind(options.kind)
        if options.kind
        else kind_on(options.backbone, get_kind(task.kind), tables, named)
    )
    raws = {
        name: kind.schema.read(table, kind.schema.columns(table, named)) for name, table in tables.items()
    }
    found = source or Source("package", task.name, "")
    return _task_of(
        raws, task.name, kind, options, replace(found, licence=task.licence), task.metric, task.labels
    )


def _gym(name: str, options: _Options) -> Task:
    task = parse_gym(name)
    kind = get_kind(options.kind) if options.kind else gym_kind(task, get_kind(_PROMPTS), options.backbone)
    raws, version = read_gym(task, kind, options.seed, options.made)
    source = Source("package", task.name, "", f"reasoning-gym {version}, Apache-2.0")
    # An answer is right or wrong, however likely it was.
    return _task_of(raws, name, kind, options, source, EXACT_MATCH.name if kind.scorer.writes else None)


def _glue(task: GlueTask, options: _Options, stand_in: bool, tell: Notify) -> Task:
    if glue_available(task):
        columns = ColumnNames(task.text, task.text_pair, "label")
        tables = read_hub(GLUE_REPOSITORY, task.name)  # labels of GLUE's test splits are hidden
        return _from_tables(tables, task.name, columns, options, origin="hub", metric=task.metric)
    missing = f"The task {task.name!r} comes from the hub, which does not answer."
    if task.stand_in is None or not stand_in:
        reason = "Stand-ins are switched off." if task.stand_in else "No packaged task stands in for it."
        raise TaskError(
            f"{missing} {reason} Packaged tasks: {', '.join(PACKAGED)}; a local folder works as well."
        )
    other = PACKAGED[task.stand_in]
    notice = (
        f"{missing} The packaged task {other.name!r} stands in for it ({other.rows:,} rows, another data "
        f"set): its scores are not comparable with those of {task.name!r}."
    )
    tell(notice)
    return _packaged(other, options, tell, Source("package", other.name, "", None, task.name, notice))


def _from_tables(
    tables: dict[str, Table],
    name: str,
    named: ColumnNames,
    options: _Options,
    *,
    origin: Literal["hub", "file", "memory"] = "file",
    where: str | None = None,
    metric: str | None = None,
) -> Task:
    tables = {split: with_languages(table) for split, table in tables.items()}
    # Columns that are not named are those of other data, where they are here; a name may be of several, with
    # commas. A second text goes with a first one of these.
    like = {} if options.like is None else dict(vars(options.like))
    if named.text is not None:
        like.pop("text_pair", None)
    for what, before in like.items():
        if before is not None and getattr(named, what) is None:
            several = [part.strip() for part in before.split(",")]
            if before in tables["train"].columns or all(part in tables["train"].columns for part in several):
                named = replace(named, **{what: before})
    scored_by = options.metric or metric
    kind = choose_kind(tables, named, kind=options.kind, metric=scored_by, backbone=options.backbone)
    chosen = kind.schema.columns(tables["train"], named)
    dropped: dict[str, int] = {}
    if options.drop_empty:
        for split, table in tables.items():
            empty = set(empty_rows(table, chosen))
            if empty:
                rest = table.take([i for i in range(len(table)) if i not in empty])
                # Messages count rows from here on without those.
                where_now = f"{table.where} without {len(empty):,} empty rows"
                tables[split], dropped[table.where] = replace(rest, where=where_now), len(empty)
        # Empty labels hid what the others are.
        kind = choose_kind(tables, named, kind=options.kind, metric=scored_by, backbone=options.backbone)
        chosen = kind.schema.columns(tables["train"], named)
    if chosen.label is not None and not kind.scorer.writes:
        tables = {split: table.with_numbers(chosen.label) for split, table in tables.items()}
    raws = {split: kind.schema.read(table, chosen) for split, table in tables.items()}
    # A part may lack a column that rows need not have.
    names = dict.fromkeys(name for raw in raws.values() for name in raw.fields)
    for split, raw in raws.items():
        given = {name: raw.fields.get(name, [None] * len(raw.texts)) for name in names}
        raws[split] = replace(raw, fields=given)
    order = options.scored_by or ()
    if not order and chosen.label is not None:
        order = tables["train"].label_names.get(chosen.label, ())
    used = {what: column for what, column in vars(chosen).items() if column is not None}
    further = [name for name in names if name in tables["train"].columns]
    further += kind.schema.further_columns(tables["train"], chosen)
    used |= {name: name for name in further if name not in used.values()}
    ignored = tuple(column for column in tables["train"].columns if column not in used.values())
    task = _task_of(
        raws,
        name,
        kind,
        options,
        Source(origin, where or name, ""),
        metric,
        order,
        whole=options.scored_by is not None and len(raws) == 1,
        # The splits of tasks that have a name stay as scores of them were recorded.
        near=cluster_of(name) is None,
    )
    return replace(task, reading=Reading(used, ignored, dropped))


def _task_of(
    raws: Mapping[str, RawRows],
    name: str,
    kind: TaskKind,
    options: _Options,
    source: Source,
    metric: str | None,
    order: Sequence[str] = (),
    *,
    whole: bool = False,
    near: bool = False,
) -> Task:
    """The task of rows that came as train, validation and test, or some of these.

    Args:
        source: whose `sha256` is filled in here.
        metric: the task's usual one.
        order: names of the classes in order, where they are known.
        whole: whether the only split is *test* as a whole.
        near: whether copies that differ by white space, case or a full stop stay together where splits are
        cut.
    """
    parts = list(raws.values())
    classes, encoded = kind.schema.encode_labels(parts, order)
    source = replace(
        source,
        sha256=rows_sha256(
            [text for part in parts for text in part.texts],
            None if parts[0].pairs is None else [pair for part in parts for pair in part.pairs or []],
            [label for part in parts for label in part.labels],
            {field: [value for part in parts for value in part.fields[field]] for field in parts[0].fields},
        ),
    )

    given = {
        split: Split(raw.texts, raw.pairs, labels, raw.fields)
        for (split, raw), labels in zip(raws.items(), encoded, strict=True)
    }
    train = given["train"]
    splits: dict[SplitName, Split]
    if whole:
        splits = {"train": train.take([]), "select": train.take([]), "test": train}
    elif "validation" in given and "test" in given:
        splits = {"train": train, "select": given["validation"], "test": given["test"]}
    else:
        rows = (train.texts, train.pairs, kind.schema.strata(train.labels))
        alike, tenth = kind.schema.alike(train), max(1, round(len(train) / 10))
        held_out = given.get("test", given.get("validation"))
        if held_out is not None:
            select, rest = cut(*rows, [min(tenth, SELECT_LIMIT)], options.seed, alike, near=near)
        else:
            test, select, rest = cut(*rows, [tenth, tenth], options.seed, alike, near=near)
            held_out = train.take(test)
        splits = {"train": train.take(rest), "select": train.take(select), "test": held_out}

    own = None
    if options.own_metric is not None:
        own = use_metric(own_metric(options.own_metric, generated=kind.scorer.writes))
    kind = kind.settled(classes, pairs=splits["test"].pairs is not None, backbone=options.backbone)
    # A task may be loaded as another kind than its metric scores.
    usual = metric if metric in metrics_of(kind.name) else kind.scorer.metric_for(classes)
    chosen = own.name if own is not None else options.metric or usual
    check_metric(chosen, kind.name, classes, splits["test"])
    if options.scored_by is None:
        kind.schema.check(name, splits["train"], classes)
    weights = kind.scorer.class_weights(options.class_weights, splits["train"].labels, classes)
    task = Task(name, kind.name, classes, splits, chosen, weights, source, own_metric=own)
    wanted = options.rows
    return task if wanted is None else task.cut(wanted.train, wanted.select, wanted.test, options.seed)

"""A trained hybrid, on disk or live: what it was trained for, and the task that it is scored on."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from autopeft.arguments import command_line
from autopeft.devices import AUTO, device_named
from autopeft.errors import DataError, TaskError, UsageError
from autopeft.export.from_python import longest_of
from autopeft.export.manifest import MANIFEST, read_manifest
from autopeft.export.package import Saved, find_saved, load_saved
from autopeft.foreign import read_table_in, table_of
from autopeft.hybrid import Hybrid
from autopeft.hybrid.labels import nameless
from autopeft.runs.folder import as_typed, why_not_here
from autopeft.search.selection.result import SearchResult
from autopeft.tasks import SPLIT_NAMES, Rows, Split, Task, TaskKind, load_task
from autopeft.tasks.kinds import generative_kind, kind_of_model, own_metric, use_metric
from autopeft.tasks.metrics import check_metric
from autopeft.tasks.table import ColumnNames, same_numbers
from autopeft.training.arguments import TrainArguments
from autopeft.training.fixed import FixedOutcome
from autopeft.training.options import MetricFunction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from autopeft.export.arguments import ChatArguments, EvaluateArguments, PredictArguments

__all__ = ["Trained", "TrainedHybrid", "on_backbone", "saved_of", "task_of", "trained"]

Trained: TypeAlias = str | Path | Saved | FixedOutcome | SearchResult | Hybrid
Live: TypeAlias = "tuple[Hybrid, PreTrainedTokenizerBase]"
Notify: TypeAlias = Callable[[str], None] | None


class Load(Protocol):
    """Gives a hybrid and its tokenizer; takes what `autopeft.export.package.load_saved` does."""

    def __call__(
        self,
        *,
        model: str | None = None,
        notify: Notify = None,
        quantize: str | None = None,
        precision: str | None = None,
        device: str = AUTO,
    ) -> Live: ...


@dataclass(frozen=True)
class TrainedHybrid:
    """What a hybrid was trained for.

    Attributes:
        where: its folder, or the name of a live hybrid's recipe.
        labels: class names in the order that its head learnt; `LABEL_0` and so on where they have no names.
        metric: of its own task, where that is known.
        load: gives the hybrid and its tokenizer.
        manifest: of its folder, where it has one.
        result: the figures of its run, where they are known.
        pairs: whether it was trained on pairs of texts; `None` where that is not known.
        rows: its own task, where the rows were handed over in memory and are still there.
    """

    where: Path
    kind: TaskKind
    labels: tuple[str, ...]
    metric: str | None
    max_length: int
    load: Load
    manifest: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool | None = None
    rows: Task | None = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What its training was told about the data."""
        return table_of(self.manifest.get("arguments"))

    @property
    def columns(self) -> ColumnNames:
        """The columns that it was trained on, as far as they were named."""
        return ColumnNames(*(self.arguments.get(name) for name in ("text", "text_pair", "label")))

    @property
    def use(self) -> Mapping[str, Any]:
        """What its kind of task noted of its training rows, to be asked (see `Encoder.use`)."""
        return table_of(table_of(table_of(self.manifest.get("data")).get("summary")).get("use"))

    def to_score(self, rows: Split) -> Split:
        """Rows as it reads them where it is asked; as they are where its training rows are not known."""
        known = "summary" in table_of(self.manifest.get("data"))
        return self.kind.schema.as_trained(rows, self.use) if known else rows

    def longest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """Longest text in tokens; where that was not recorded, as from Python, the tokenizer bounds it."""
        unknown = self.manifest.get("architecture") is not None
        return min(self.max_length, tokenizer.model_max_length) if unknown else self.max_length


def saved_of(run: Trained) -> Saved:
    """The folder of a trained hybrid.

    Raises:
        UsageError: there is none.
    """
    if isinstance(run, Saved):
        return run
    if isinstance(run, FixedOutcome):
        return find_saved(run.folder)
    if isinstance(run, SearchResult):
        return find_saved(run.run)
    if isinstance(run, Hybrid):
        raise UsageError("A live hybrid has no folder: write it to one with hybrid.save(folder).")
    return find_saved(run)


def trained(
    run: Trained, *, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int | None = None
) -> TrainedHybrid:
    """What is known of a trained hybrid, before its weights are read.

    Args:
        run: a run's name or folder, `latest`, an exported folder, what `search` or `train` returned, or a
            live hybrid.
        tokenizer, max_length: of a live hybrid.

    Raises:
        UsageError: there is no such hybrid, or what texts are encoded with is unknown.
    """
    if isinstance(run, FixedOutcome):
        return _of_outcome(run)
    if isinstance(run, Hybrid):
        return _of_hybrid(run, tokenizer, max_length)
    if tokenizer is not None or max_length is not None:
        raise UsageError("tokenizer and max_length are for live hybrids: a saved one has them in its folder.")
    saved = saved_of(run)
    card, manifest = saved.card, read_manifest(saved.folder)
    return TrainedHybrid(
        where=saved.folder,
        kind=card.task_kind,
        labels=card.labels,
        metric=card.metric,
        max_length=card.max_length,
        load=partial(load_saved, saved),
        manifest=manifest,
        result=card.result,
        pairs=card.pairs,
    )


def on_backbone(given: EvaluateArguments | PredictArguments | ChatArguments) -> dict[str, Any]:
    """What a hybrid's `load` is told: which backbone, and how it is held."""
    return {name: getattr(given, name) for name in ("model", "notify", "quantize", "precision", "device")}


def _moved(hybrid: Hybrid, device: str) -> Hybrid:
    """A live hybrid with its model on the device of a name; `auto` leaves it where it is."""
    if device != AUTO:
        hybrid.model.to(device_named(device))  # type: ignore[arg-type]
    return hybrid


def _of_outcome(outcome: FixedOutcome) -> TrainedHybrid:
    task = outcome.task

    def load(*, notify: Notify = None, device: str = AUTO, **other: str | None) -> Live:
        """The live one, unless it was taken off, or is to be on another backbone."""
        if outcome.hybrid.attached and not any(other.values()):
            return _moved(outcome.hybrid, device), outcome.tokenizer
        return load_saved(find_saved(outcome.folder), notify=notify, device=device, **other)

    return TrainedHybrid(
        where=outcome.folder,
        kind=task.task_kind,
        labels=task.labels,
        metric=task.metric,
        max_length=outcome.max_length,
        load=load,
        manifest=read_table_in(outcome.folder, MANIFEST),
        result=outcome.to_dict(),
        pairs=task.splits["train"].pairs is not None,
        rows=task if task.source.origin == "memory" else None,
    )


def _of_hybrid(
    hybrid: Hybrid, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None
) -> TrainedHybrid:
    config = hybrid.model.config
    writes = generative_kind(type(hybrid.model).__name__)
    kind, labels = kind_of_model(config, type(hybrid.model).__name__) if writes is None else (writes, ())
    path = getattr(config, "_name_or_path", "")
    if tokenizer is None and not path:
        raise UsageError("This hybrid's model was not loaded by name; hand over its tokenizer=… as well.")
    words = (
        kind.encoder.load_processor(path) if tokenizer is None else kind.encoder.processor(tokenizer, config)
    )

    def load(*, notify: Notify = None, device: str = AUTO, **other: str | None) -> Live:
        if any(other.values()):
            raise UsageError(f"{', '.join(other)} are for saved hybrids: a live one is on its own model.")
        return _moved(hybrid, device), words

    return TrainedHybrid(
        where=Path(hybrid.recipe.name),
        kind=kind,
        labels=labels,
        metric=None,
        max_length=max_length or min(longest_of(kind), words.model_max_length),
        load=load,
    )


def task_of(known: TrainedHybrid, given: EvaluateArguments) -> Task:
    """The task that is asked for (default: the hybrid's own, split as in training), labels in the head's
    order.

    The data are read as the hybrid's own kind of task, and scored with its metric unless another is given.
    Other data that come without splits are *test* as a whole, unless a split of them or a seed is asked for.

    Raises:
        TaskError: the task has labels that the hybrid's head does not know, or the hybrid's own rows were
            handed over in memory.
        DataError: the data are not of the hybrid's kind.
    """
    own = given.task is None
    if own and known.rows is not None and given.seed is None:
        return _with_metric(known.rows, given.metric)
    name = _own_name(known) if own else given.task
    before = known.arguments if own else {}

    def column(which: str) -> str | None:
        asked: str | None = getattr(given, which)
        return asked if asked is not None else before.get(which)

    load = partial(
        load_task,
        name,
        text=column("text"),
        text_pair=column("text_pair"),
        label=column("label"),
        kind=known.kind.plain,
        metric=given.metric or known.metric,
        like=None if own else known.columns,
        drop_empty=given.drop_empty or before.get("drop_empty") is True,
        seed=given.seed if given.seed is not None else _seed(known),
        made=_made(known) if own else None,
        stand_in=given.stand_in,
        notify=given.notify,
    )
    whole = not own and (given.split == "all" or (given.split is None and given.seed is None))
    names = () if nameless(known.labels) else known.labels
    if own:
        task = load()
    elif not whole:
        task = _cut(load, names)
    else:
        task = load(scored_by=names)
        if given.split is None and _trained_on(known, task):
            task = load()
    without = nameless(known.labels) and len(task.labels) == len(known.labels)
    found = task if without or task.labels == known.labels else _relabelled(task, known, given)
    # What its kind was told is for its own labels, which the data may have in part.
    pairs = found.splits["test"].pairs is not None
    kind = known.kind.settled(found.labels, pairs=pairs, backbone=None)
    _check_pairs(known, pairs)
    return replace(found, kind=kind.name)


def _check_pairs(known: TrainedHybrid, pairs: bool) -> None:
    """Refuse single texts for a hybrid of pairs, and pairs for one of single texts."""
    if known.pairs is None or known.pairs == pairs:
        return
    if pairs:
        raise UsageError(
            "This hybrid was trained on single texts, but the rows of this task are pairs; name the column "
            "of the texts alone with --text (text=…)."
        )
    raise UsageError(
        "This hybrid was trained on pairs of texts, but the second ones are missing: name their column with "
        "--text-pair (text_pair=…)."
    )


def _seed(known: TrainedHybrid) -> int:
    """What the rows were split with.

    Raises:
        UsageError: what its manifest says is no seed.
    """
    found = known.arguments.get("seed")
    if found is None:
        return 0
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise UsageError(
            f"The manifest of {known.where} has the seed {found!r:.80}, but a seed is a whole number from 0; "
            "name the one that the rows are to be split with by --seed (seed=…)."
        )
    return found


def _made(known: TrainedHybrid) -> Rows:
    """The rows of each split that it had, for a task that makes its rows."""
    told = table_of(table_of(known.manifest.get("data")).get("rows"))
    counts = (told.get(name) for name in SPLIT_NAMES)
    return Rows(*(n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else None for n in counts))


def _training(known: TrainedHybrid, given: EvaluateArguments) -> str:
    """The command, or the call in Python, that trains a hybrid's recipe on the task that was asked for."""
    recipe = known.where / "recipe.yaml"
    if not isinstance(given.task, str) or not recipe.is_file():
        return "autopeft.train(recipe=…, task=…)"
    asked = {name: getattr(given, name) for name in ("task", "text", "text_pair", "label", "drop_empty")}
    asked = {"recipe": as_typed(recipe), **asked, "model": given.model or known.manifest.get("model")}
    words = command_line(TrainArguments, TrainArguments.unlike_defaults(asked))
    return shlex.join(["autopeft", "train", *words])


def _cut(load: Callable[..., Task], names: tuple[str, ...]) -> Task:
    """Other data, cut as for training.

    Raises:
        DataError: they cannot be; where they could be scored as a whole, it says so.
    """
    try:
        return load()
    except DataError as error:
        try:
            load(scored_by=names)
        except DataError:
            raise error from None
        raise DataError(f"{error} To score all rows, leave out split and seed.") from error


def _trained_on(known: TrainedHybrid, task: Task) -> bool:
    """Whether a task has the very rows that the hybrid was trained, selected and tested on."""
    before = table_of(table_of(known.manifest.get("data")).get("source")).get("sha256")
    return before is not None and before == task.source.sha256


def _with_metric(task: Task, metric: str | MetricFunction | None) -> Task:
    if metric is None:
        return task
    if not isinstance(metric, str):
        own = use_metric(own_metric(metric, generated=task.task_kind.scorer.writes))
        task.task_kind.scorer.check_metric(own, task.labels, task.splits["test"])
        return replace(task, metric=own.name, own_metric=own)
    check_metric(metric, task.kind, task.labels, task.splits["test"])
    return replace(task, metric=metric)


def _own_name(known: TrainedHybrid) -> str:
    data = table_of(known.manifest.get("data"))
    if not (known.manifest.get("task") or data.get("name")):
        raise TaskError("The task that this hybrid was trained on is unknown; name one with --task (task=…).")
    if table_of(data.get("source")).get("origin") == "memory":
        raise TaskError(
            "This hybrid's rows were handed over in memory and are not kept; name data with --task."
        )
    name = str(known.manifest.get("task"))
    if table_of(data.get("source")).get("origin") == "file":
        why = why_not_here(known.where, "data", name)
        if why is not None:
            raise TaskError(f"{why}. Say where they are now with --task (task=…).")
    return name


def _relabelled(task: Task, known: TrainedHybrid, given: EvaluateArguments) -> Task:
    labels = known.labels
    same = same_numbers(task.labels, labels)
    task = replace(task, labels=tuple(same.get(label, label) for label in task.labels))
    unknown = [label for label in task.labels if label not in labels]
    if unknown:
        raise TaskError(
            f"{task.name!r} has labels that the hybrid's head does not know: {', '.join(unknown[:5])}; it "
            f"knows {', '.join(labels[:10])}. Train the recipe on this task instead: "
            f"{_training(known, given)}"
        )

    def moved(split: Split) -> Split:
        return replace(split, labels=task.task_kind.schema.relabel(split.labels, task.labels, labels))

    splits = {name: moved(split) for name, split in task.splits.items()}
    return replace(task, labels=labels, splits=splits, class_weights=None)

"""Ranks the bank's hybrids as starts for a task, by the features that they give a few of its rows.

Each hybrid is attached in turn to the loaded backbone, as a recipe that starts from it would begin: what
`from:` does not bring, such as the weights of a gate, has its init. What the head's last layer reads of at
most 64 training rows is scored by `autopeft.hybrid.log_evidence`. The bare backbone is scored in the same
way. Nothing is trained.

Poth et al. 2021, arXiv:2104.08247, compare such scores on 42 sources and 11 targets. How well this one tells
a good start on this bank is not measured here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from autopeft import bank
from autopeft.arguments import takes
from autopeft.assets import ModelSource, keep_model, load_config, resolve_model, unquantized
from autopeft.backbones import spec_of
from autopeft.devices import device_named
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.hybrid import log_evidence
from autopeft.hybrid.inputs import open_input
from autopeft.method import get_method
from autopeft.recipe import CompositionItem, EntryItem, InputItem, Item, LayerBlock, Recipe
from autopeft.recipe.pooling import Pooling, pooled, unpooled
from autopeft.spec import BackboneSpec
from autopeft.starts.arguments import RankArguments
from autopeft.tasks import Task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan
from autopeft.training.head_start import head_features, last_linear
from autopeft.training.pooling import better_pooling
from autopeft.training.task_loading import task_from_arguments

__all__ = ["MOST_ROWS", "Ranking", "Start", "rank", "ranked", "starting_from"]

MOST_ROWS = 64
_AT_ONCE = 16  # rows of about one length
_MAX_LENGTH = 128


@dataclass(frozen=True)
class Start:
    """A hybrid of the bank as a start.

    Attributes:
        name: in the bank.
        task: that it was trained on, where that is known.
        methods: of its recipe.
        score: the log evidence of the task's labels, for each row; higher is better.
    """

    name: str
    task: str | None
    methods: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Ranking:
    """The bank's hybrids as starts for a task.

    Attributes:
        task, model: as they were named.
        rows: labelled training rows that were read.
        pooling: what the head reads, the same for all.
        bare: the score of the backbone with nothing attached.
        starts: the best first.
        skipped: a sentence for each that cannot be a start here.
    """

    task: str
    model: str
    rows: int
    pooling: Pooling
    bare: float
    starts: tuple[Start, ...]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The ranking as data."""
        return asdict(self)


@takes(RankArguments)
def rank(given: RankArguments) -> Ranking:
    """Rank the hybrids in the bank as starts for a task.

    Args:
        {arguments}

    Raises:
        UsageError: an argument is wrong, the bank is empty, or the head of such a task does not end in a
            linear map of its own.
    """
    if given.task is None:
        raise UsageError("Ranking needs the task that is to start from a hybrid; name it: --task.")
    name = str(keep_model(*given.model) if isinstance(given.model, tuple) else given.model)
    source = resolve_model(name, notify=given.notify)
    spec = spec_of(unquantized(load_config(source), name))
    task = task_from_arguments(given, given.notify, None, spec)
    shown = type(given.model[0]).__name__ if isinstance(given.model, tuple) else name
    return ranked(
        task, source, spec, shown, seed=given.seed, max_length=given.max_length, device=str(given.device)
    )


def ranked(
    task: Task,
    source: ModelSource,
    spec: BackboneSpec,
    model: str,
    *,
    seed: int = 0,
    max_length: int | None = None,
    device: str = "auto",
    pooling: Pooling | None = None,
) -> Ranking:
    """Rank the hybrids in the bank as starts for a loaded task.

    Args:
        model: what `source` is called.
        max_length: tokens of a row at most, by default those of the model, and 128 at most.
        pooling: what the head reads; by default what a linear map predicts better from.

    Raises:
        UsageError: the bank is empty, or the head of such a task does not end in a linear map of its own.
    """
    kept = list(bank.entries())
    if not kept:
        raise UsageError("The bank is empty; `autopeft bank add RUN` keeps the winner of a run.")
    kind = task.task_kind
    if not (kind.head.new_head and kind.head.probed):
        raise UsageError(
            f"{task.name!r} is of the kind {kind.plain}, which has no new head that reads features of its "
            "rows, so that its starts cannot be ranked; take a task of classes, numbers or tags."
        )
    few = task.subset(MOST_ROWS, MOST_ROWS, MOST_ROWS, seed=seed)
    tokenizer = kind.encoder.load_processor(source)
    plan = TrainingPlan(
        steps=1,
        eval_batch_size=_AT_ONCE,
        max_length=max_length or min(_MAX_LENGTH, tokenizer.model_max_length),
        seed=seed,
        device=str(device_named(device)),
    )
    data = encode(few, tokenizer, plan.max_length)
    backbone = kind.head.load_model(source, few.labels, seed=seed)
    if pooling is None:
        found = better_pooling(backbone, data, plan, spec)
        pooling = "own" if found is None else found.pooling
    bare = _score(backbone, data, plan, Recipe(name="bare"), pooling)

    starts, skipped = list[Start](), list[str]()
    for entry in kept:
        if isinstance(entry, bank.Damaged):
            skipped.append(entry.problem)
            continue
        try:
            recipe = starting_from(entry)
            score = _score(backbone, data, plan, recipe, pooling)
        except AutoPEFTError as error:
            skipped.append(f"{entry.name} is no start here: {str(error).splitlines()[0]}")
            continue
        starts.append(Start(entry.name, entry.task, recipe.methods, score))
    starts.sort(key=lambda start: -start.score)
    return Ranking(task.name, model, len(data.train), pooling, bare, tuple(starts), tuple(skipped))


def _score(
    model: PreTrainedModel, data: EncodedTask, plan: TrainingPlan, recipe: Recipe, pooling: Pooling
) -> float:
    """How well the features that a recipe gives at its start explain the labels.

    Raises:
        UsageError: the recipe does not fit the model, or the head does not end in a linear map.
    """
    name = last_linear(model)
    features = None if name is None else head_features(model, name, data, plan, pooled(recipe, pooling))
    if features is None:
        raise UsageError(f"The head of {type(model).__name__} does not end in a linear map of features.")
    return log_evidence(features.inputs, features.labels)


def starting_from(entry: bank.BankEntry) -> Recipe:
    """The recipe of a hybrid in the bank with each entry `from:` this hybrid, with default training; without
    what sets the head's pooling.

    Raises:
        DataError: it is damaged or was altered.
    """
    item = InputItem(bank=entry.name, sha256=entry.sha256)
    recipe = open_input(entry.name, item).recipe
    names = iter(recipe.entries())

    def started(old: Item) -> Item:
        if isinstance(old, CompositionItem):
            return old.model_copy(update={"children": tuple(map(started, old.children))})
        start = f"{entry.name}.{next(names).name}"
        pools = get_method(old.method).traits.pools
        return EntryItem(
            method=old.method, config=old.config, alias=old.alias, start=() if pools else (start,)
        )

    layers = tuple(
        LayerBlock(at=block.at, stack=block.stack, attach=tuple(map(started, block.attach)))
        for block in recipe.layers
    )
    model = tuple(map(started, recipe.model))
    return unpooled(Recipe(name=recipe.name, inputs={entry.name: item}, layers=layers, model=model))

"""`autopeft.train`: a fixed recipe on a task, kept in a run folder of the same layout as a search's."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from autopeft.arguments import takes
from autopeft.assets import (
    ModelSource,
    Notify,
    dtype_of,
    keep_model,
    load_config,
    resolve_model,
    unquantized,
)
from autopeft.backbones import on_meta, spec_of
from autopeft.devices import device_named
from autopeft.effort import Effort, choose_effort
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.graph import build_graph, on_packed
from autopeft.hybrid import Hybrid, attach, pinned
from autopeft.recipe import Recipe
from autopeft.recipe.pooling import pooling_of, trained_entries
from autopeft.recipe.tasks import for_tasks, lacks_tasks
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import Sample
from autopeft.spec import BackboneSpec
from autopeft.tasks import EncodedTask, Rows, Task
from autopeft.tasks.encode import encode
from autopeft.tasks.kinds import get_metric
from autopeft.tasks.summary import DataSummary, summarise
from autopeft.training.arguments import TrainArguments, TrainCall
from autopeft.training.contexts import check_checkpointing
from autopeft.training.events import SilentTrainReporter, TrainInfo, TrainReporter, Watch
from autopeft.training.forward import sharing_forward
from autopeft.training.head_start import start_head
from autopeft.training.loop import train as train_hybrid
from autopeft.training.plan import TrainingPlan
from autopeft.training.result import History, TrainResult
from autopeft.training.samples import asked_in
from autopeft.training.scoring import score_by_rows
from autopeft.training.task_loading import task_from_arguments

__all__ = ["FixedOutcome", "train"]

_log = logging.getLogger("autopeft")
_MAX_LENGTH = 128


@dataclass(frozen=True)
class FixedOutcome:
    """What came of training a fixed recipe.

    Attributes:
        scores: by split, on *select* and *test*.
        counts: deployed, trained and head parameters, and the shares.
        seconds: of training alone.
        folder: the run folder.
        hybrid: the trained hybrid on its model, in eval mode; `autopeft.predict` takes this outcome.
        tokenizer, max_length: what rows are encoded with (see `Encoder.load_processor`).
        summary: what the rows were like before training.
        history: losses, and scores on *select*, of the course of the training.
        samples: of the answers that the hybrid writes to rows of *test*; none where its kind of task writes
            nothing.
        precision: of the backbone, `fp32` or `bf16`.
    """

    recipe: Recipe
    task: Task
    scores: Mapping[str, float]
    counts: Mapping[str, int | float]
    steps: int
    seconds: float
    folder: Path
    hybrid: Hybrid
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    summary: DataSummary = field(default_factory=DataSummary)
    history: History = field(default_factory=History, repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    precision: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data, in the words of a search's result."""
        return {
            "kind": "train",
            "run": str(self.folder),
            "recipe": self.recipe.to_dict(),
            "metric": self.task.metric,
            "trial_metric": self.task.task_kind.scorer.trial_metric(get_metric(self.task.metric)).name,
            "select_mean": self.scores.get("select"),
            "test_mean": self.scores.get("test"),
            "test_sd": None,
            "counts": dict(self.counts),
            "steps": self.steps,
            "seconds": self.seconds,
            "history": self.history.to_dict(),
            "samples": [asdict(sample) for sample in self.samples],
            "constant": None if self.summary.constant is None else self.summary.constant.to_dict(),
            "remarks": [*self.summary.remarks, *self.hybrid.remarks()],
            "notice": self.task.source.notice,
            "precision": self.precision,
        }


@takes(TrainCall)
def train(call: TrainCall) -> FixedOutcome:
    """Train a fixed recipe on a task, score it, and keep it in a run folder.

    A hybrid that is attached already is trained by `autopeft.training.train`, of which this is the whole
    around: data, backbone, recipe, plan, scores and files.

    Args:
        {arguments}

    Raises:
        UsageError: an argument is wrong.
        AutoPEFTError: training failed.

    Example:
        >>> outcome = autopeft.train(task="trec", recipe="mam")           # doctest: +SKIP
        >>> outcome.scores["test"]                                         # doctest: +SKIP
        >>> autopeft.predict(outcome, "What is the capital of France?")    # doctest: +SKIP
    """
    given = call.base(TrainArguments)
    dtype, device = dtype_of(given.precision), device_named(given.device)
    recipe = given.recipe if isinstance(given.recipe, Recipe) else Recipe.load(given.recipe)
    recipe = pinned(recipe, given.runs)
    name = str(keep_model(*given.model) if isinstance(given.model, tuple) else given.model)
    source = resolve_model(name, notify=call.notify, quantize=given.quantize)
    spec = spec_of(unquantized(load_config(source), name))
    unnamed = lacks_tasks(recipe)  # their names come with the data
    if not unnamed:
        _check_graph(recipe, spec, source)
    task, effort = _task(given, spec, call.notify)
    recipe = for_tasks(recipe, task.members)
    if unnamed:
        _check_graph(recipe, spec, source)
    task.task_kind.head.check_weights(source)
    tokenizer = task.task_kind.encoder.load_processor(source)
    longest = given.max_length or min(_MAX_LENGTH, tokenizer.model_max_length)
    plan = _plan(given, effort.steps, longest)
    if plan.memory_saving:
        check_checkpointing(on_meta(load_config(source), task.task_kind.head.auto_class))
    summary = summarise(task, tokenizer, longest)
    reporter = call.reporter or SilentTrainReporter()
    if call.reporter is None:  # what limits the scores is said all the same
        for remark in summary.remarks:
            (call.notify or _log.warning)(remark)
    folder = RunFolder.create(task.name, recipe.hash(), root=given.runs, out=given.out)
    with folder.locked(), _whole_or_none(folder):
        folder.write_json(
            "manifest.json", _manifest(given.changed(model=name), recipe, source, task, plan, summary)
        )
        shown = type(given.model[0]).__name__ if isinstance(given.model, tuple) else name
        info = TrainInfo(recipe.name, task.name, shown, task.metric, plan.steps, str(folder.path), summary)
        reporter.on_start(info)
        data = encode(task, tokenizer, plan.max_length, learn_all=plan.learn_all)
        model = task.task_kind.head.load_model(source, task.labels, seed=given.seed, dtype=dtype)
        model.to(device)  # type: ignore[arg-type]
        if plan.head_start == "probe":
            alone = not trained_entries(recipe)
            start_head(model, data, plan, alone=alone, pooling=pooling_of(recipe))
        hybrid = attach(model, recipe, seed=given.seed, runs=given.runs)
        result, scores, history, samples = _train(hybrid, data, plan, reporter)
        hybrid.model.eval()
        counts = hybrid.counts().to_dict()
        outcome = FixedOutcome(
            recipe, task, scores, counts, result.steps, result.seconds, folder.path, hybrid, tokenizer,
            plan.max_length, summary, history, samples, given.precision,
        )  # fmt: skip
        _keep(folder, hybrid, outcome)
    return outcome


def _check_graph(recipe: Recipe, spec: BackboneSpec, source: ModelSource) -> None:
    """Refuse what cannot be attached, before data and weights are read."""
    graph = build_graph(recipe, spec)
    reason = on_packed(graph) if source.quantize else None
    if reason is not None:
        raise UsageError(
            f"The backbone is quantized ({source.quantize}), and {reason}; take methods that act on "
            "activations alone, such as lora or serial_adapter, or leave --quantize out."
        )


@contextmanager
def _whole_or_none(folder: RunFolder) -> Iterator[None]:
    """Leave no run behind that has nothing to show: one training cannot go on where it ended."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # what ended the training is told, not that this failed too
            folder.discard()
        raise


def _task(given: TrainArguments, spec: BackboneSpec, notify: Notify | None) -> tuple[Task, Effort]:
    effort = choose_effort(given.effort, steps=given.steps)
    rows = Rows(effort.train_rows, effort.select_rows, effort.test_rows)
    task = task_from_arguments(given, notify, rows, spec)
    return task.cut(rows.train, rows.select, rows.test, seed=given.seed), effort


def _plan(given: TrainArguments, steps: int, max_length: int) -> TrainingPlan:
    return TrainingPlan(
        steps=steps,
        batch_size=given.batch_size,
        micro_batch=given.micro_batch,
        shortcuts=given.shortcuts,
        packing=given.packing,
        learn_all=given.learn_all,
        memory_saving=given.memory_saving,
        head_start=given.head_start,
        max_length=max_length,
        seed=given.seed,
        device=given.device,
        eval_every=given.eval_every,
    )


def _manifest(
    given: TrainArguments,
    recipe: Recipe,
    source: ModelSource,
    task: Task,
    plan: TrainingPlan,
    summary: DataSummary,
) -> dict[str, Any]:
    return {
        "kind": "train",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": given.task if isinstance(given.task, str) else task.name,
        "model": given.model,
        "budget": None,
        "space": None,
        "inputs": {name: item.to_data() for name, item in recipe.inputs.items()},
        "arguments": given.record(),
        "seed": given.seed,
        "training": asdict(plan),
        "data": {**task.describe(), "summary": summary.to_dict()},
        "notice": task.source.notice,
        "backbone": asdict(source),
    }


def _train(
    hybrid: Hybrid, data: EncodedTask, plan: TrainingPlan, reporter: TrainReporter
) -> tuple[TrainResult, dict[str, float], History, tuple[Sample, ...]]:
    watch = Watch(reporter, plan.steps)
    result = train_hybrid(hybrid, data, plan, on_step=watch.step, on_score=watch.score, on_phase=watch.phase)
    watch.phase("scoring")
    found = {
        name: score_by_rows(
            hybrid.model,
            data.splits[name],
            data.task.metric,
            loss=False,
            forward=sharing_forward(hybrid, data.splits[name], data.task.task_kind),
            asked=asked_in(data.task, name) if name == "test" else None,
            batch_size=plan.eval_rows,
        )
        for name in ("select", "test")
    }
    scores = {name: scored.score for name, scored in found.items()}
    return result, scores, History.of(result, watch.phases), found["test"].samples


def _keep(folder: RunFolder, hybrid: Hybrid, outcome: FixedOutcome) -> None:
    with tempfile.TemporaryDirectory(dir=folder.path) as scratch:
        hybrid.save(scratch)
        files = {p.name: p.read_bytes() for p in Path(scratch).iterdir() if p.is_file()}
    if not files:
        raise AutoPEFTError("The hybrid saved no files.")
    folder.write_winner(files)
    folder.write_text("recipe.yaml", outcome.recipe.to_yaml())
    folder.write_json("result.json", outcome.to_dict())

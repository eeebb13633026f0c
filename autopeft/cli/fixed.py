"""One training run of a fixed recipe, kept in a run folder of the same layout as a search's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.cli.backbone import quiet_libraries
from autopeft.errors import AutoPEFTError

if TYPE_CHECKING:
    from autopeft.assets import ModelSource
    from autopeft.hybrid import Hybrid
    from autopeft.recipe import Recipe
    from autopeft.runs.folder import RunFolder
    from autopeft.tasks import ClassWeights, EncodedTask, Task
    from autopeft.training import TrainingPlan

__all__ = ["FixedOutcome", "FixedRun", "run_fixed"]

_LINES = 10
_MAX_LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class FixedRun:
    """What `autopeft train` is told.

    Attributes:
        columns: the text, text_pair and label columns of a user's data.
        kind: of task; `None` for what the data look like.
        max_length: `None` for 128, or less where the tokenizer takes less.
    """

    recipe: str
    task: str
    model: str
    effort: str
    steps: int | None
    seed: int
    max_length: int | None
    batch_size: int
    micro_batch: int | None
    precision: str
    shortcuts: bool
    columns: Mapping[str, str | None]
    kind: str | None
    metric: str | None
    class_weights: ClassWeights
    stand_in: bool
    out: Path | None


@dataclass(frozen=True)
class FixedOutcome:
    """What came of it: `scores` by split, the four `counts`, and the run `folder`."""

    recipe: Recipe
    task: Task
    scores: Mapping[str, float]
    counts: Mapping[str, int | float]
    steps: int
    seconds: float
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data, in the words of a search's result."""
        return {
            "kind": "train",
            "run": str(self.folder),
            "recipe": self.recipe.to_dict(),
            "metric": self.task.metric,
            "select_mean": self.scores.get("select"),
            "test_mean": self.scores.get("test"),
            "test_sd": None,
            "counts": dict(self.counts),
            "steps": self.steps,
            "seconds": self.seconds,
            "notice": self.task.source.notice,
        }


def run_fixed(run: FixedRun, notify: Callable[[str], None], *, quiet: bool = False) -> FixedOutcome:
    """Train, score on *select* and *test*, and write the run folder. `quiet` leaves out the progress.

    Raises:
        UsageError: an argument is wrong.
        AutoPEFTError: training failed.
    """
    from autopeft.assets import dtype_of, load_config, load_tokenizer, resolve_model
    from autopeft.backbones import spec_of
    from autopeft.graph import build_graph
    from autopeft.hybrid import attach
    from autopeft.recipe import Recipe
    from autopeft.runs.folder import RunFolder
    from autopeft.tasks.encode import encode

    quiet_libraries()
    dtype = dtype_of(run.precision)
    recipe = Recipe.load(run.recipe)
    source = resolve_model(run.model, notify=notify)
    build_graph(recipe, spec_of(load_config(source)))
    tokenizer = load_tokenizer(source)
    longest = min(_MAX_LENGTH, tokenizer.model_max_length) if run.max_length is None else run.max_length
    task, plan = _task_and_plan(run, longest, notify)
    folder = RunFolder.create(task.name, recipe.hash(), out=run.out)
    folder.write_json("manifest.json", _manifest(run, source, task, plan))
    data = encode(task, tokenizer, plan.max_length)
    model = task.task_kind.load_model(source, task.labels, seed=run.seed, dtype=dtype)
    hybrid = attach(model, recipe, seed=run.seed)
    seconds, scores = _train(hybrid, data, plan, None if quiet else notify)
    outcome = FixedOutcome(recipe, task, scores, hybrid.counts().to_dict(), plan.steps, seconds, folder.path)
    _keep(folder, hybrid, outcome)
    return outcome


def _task_and_plan(
    run: FixedRun, max_length: int, notify: Callable[[str], None]
) -> tuple[Task, TrainingPlan]:
    from autopeft.effort import choose_effort
    from autopeft.tasks import load_task
    from autopeft.training import TrainingPlan

    effort = choose_effort(run.effort, steps=run.steps)
    plan = TrainingPlan(
        steps=effort.steps,
        batch_size=run.batch_size,
        micro_batch=run.micro_batch,
        shortcuts=run.shortcuts,
        max_length=max_length,
        seed=run.seed,
    )
    task = load_task(
        run.task,
        text=run.columns["text"],
        text_pair=run.columns["text_pair"],
        label=run.columns["label"],
        kind=run.kind,
        metric=run.metric,
        class_weights=run.class_weights,
        seed=run.seed,
        stand_in=run.stand_in,
        notify=notify,
    )
    return task.subset(effort.train_rows, effort.select_rows, effort.test_rows, seed=run.seed), plan


def _manifest(run: FixedRun, source: ModelSource, task: Task, plan: TrainingPlan) -> dict[str, Any]:
    arguments = {key: str(v) if isinstance(v, Path) else v for key, v in vars(run).items()}
    return {
        "kind": "train",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": run.task,
        "model": run.model,
        "budget": None,
        "space": None,
        "arguments": arguments,
        "seed": run.seed,
        "training": asdict(plan),
        "data": task.describe(),
        "notice": task.source.notice,
        "backbone": asdict(source),
    }


def _train(
    hybrid: Hybrid, data: EncodedTask, plan: TrainingPlan, say: Callable[[str], None] | None
) -> tuple[float, dict[str, float]]:
    from autopeft.training import evaluate, train

    every = max(1, plan.steps // _LINES)

    def on_step(step: int, loss: float) -> None:
        if say is not None and (step % every == 0 or step == plan.steps):
            say(f"step {step}/{plan.steps}  loss {loss:.4f}")

    result = train(hybrid, data, plan, on_step=on_step)
    scores = {
        name: evaluate(hybrid.model, data.splits[name], data.task.metric, batch_size=plan.eval_batch_size)
        for name in ("select", "test")
    }
    return result.seconds, scores


def _keep(folder: RunFolder, hybrid: Hybrid, outcome: FixedOutcome) -> None:
    with tempfile.TemporaryDirectory(dir=folder.path) as scratch:
        hybrid.save(scratch)
        files = {p.name: p.read_bytes() for p in Path(scratch).iterdir() if p.is_file()}
    if not files:
        raise AutoPEFTError("The hybrid saved no files.")
    folder.write_winner(files)
    folder.write_text("recipe.yaml", outcome.recipe.to_yaml())
    folder.write_json("result.json", outcome.to_dict())

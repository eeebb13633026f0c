"""Parts of `run.py` that run in a process of their own: making files, first steps, attaching.

Each reads what it needs from a folder and returns what is measured. What they import is imported in them: the
imports are part of what is measured.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.measuring import interleave, note, summarise
from lib.worker import RECIPES, load_backbone_and_data, make_job, read_setup, run_here

if TYPE_CHECKING:
    from autopeft.recipe import Recipe

__all__ = ["part_attach", "part_files", "part_first"]


def part_files(folder: Path) -> dict[str, Any]:
    """Fetch model and data; write the worker's setup, and a trial of the obvious implementation."""
    from lib.draws import peft_words
    from lib.obvious import Training, Trial

    from autopeft.assets import load_config, resolve_model
    from autopeft.backbones import spec_of
    from autopeft.recipe import Recipe
    from autopeft.search.execution.worker import WorkerSetup
    from autopeft.tasks import load_task
    from autopeft.training import TrainingPlan

    options = json.loads((folder / "options.json").read_text())
    source = resolve_model(options["model"], notify=note)
    whole = load_task(options["task"], notify=note)
    task = whole.subset(select=options["select"], test=options["select"])
    plan = TrainingPlan(steps=1, max_length=options["max_length"], device="cpu")
    setup = WorkerSetup(options["model"], source, task, plan, 1, "startup")
    (folder / "setup.pickle").write_bytes(pickle.dumps(setup))
    # A trivial trial should cost nothing itself: few rows, all of them short.
    few = replace(
        setup,
        task=task.subset(train=8, select=8, test=8),
        plan=replace(plan, batch_size=4, max_length=16),
        key="few",
    )
    (folder / "few.pickle").write_bytes(pickle.dumps(few))
    for name in ("train", "select"):
        split = task.splits[name]  # type: ignore[index]  # both names are splits
        rows = [{"text": t, "label": y} for t, y in zip(split.texts, split.labels, strict=True)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trial = Trial(
        model=source.path,
        labels=task.num_labels,
        train=str(folder / "train.jsonl"),
        select=str(folder / "select.jsonl"),
        cache=str(folder / "datasets"),
        recipe=RECIPES["lora"],
        peft=peft_words(Recipe.from_dict(RECIPES["lora"]), spec_of(load_config(source))),
        training=Training(steps=1),
        head_learning_rate=1e-3,
        max_length=options["max_length"],
    )
    (folder / "trial.json").write_text(json.dumps(asdict(trial)))
    return {"rows": {str(name): len(split) for name, split in task.splits.items()}}


def part_first(folder: Path) -> dict[str, Any]:
    """Wall and CPU seconds since the process was started, at each mark; two trials on one worker."""
    started = float(os.environ["BENCHMARK_STARTED"])
    marks: dict[str, dict[str, float]] = {}

    def mark(name: str, wall: float = started, cpu: float = 0.0) -> None:
        marks.setdefault(name, {"wall": time.time() - wall, "cpu": time.process_time() - cpu})

    import autopeft.search.execution.local_executor
    import autopeft.search.execution.worker  # noqa: F401

    mark("imports")
    setup = read_setup(folder)
    load_backbone_and_data(setup)
    mark("backbone and data")
    first = lambda step, loss: mark("first step")  # noqa: E731
    run_here(setup, make_job("lora", 2), on_step=first)
    now = (time.time(), time.process_time())
    second = lambda step, loss: mark("first step of the second trial", *now)  # noqa: E731
    run_here(setup, make_job("lora", 2, 1), on_step=second)
    return marks


def part_attach(folder: Path) -> dict[str, Any]:
    """CPU milliseconds of attach and detach on a loaded model, for each recipe."""
    from autopeft.hybrid import attach
    from autopeft.recipe import Recipe

    setup = read_setup(folder)
    repeats = json.loads((folder / "options.json").read_text())["attach_repeats"]
    model = setup.task.task_kind.head.load_model(setup.source, setup.task.labels)

    def once(recipe: Recipe) -> tuple[float, float]:
        start = time.process_time()
        hybrid = attach(model, recipe, seed=0)
        middle = time.process_time()
        hybrid.detach()
        return 1e3 * (middle - start), 1e3 * (time.process_time() - middle)

    recipes = {name: Recipe.from_dict(RECIPES[name]) for name in ("lora", "prompt", "hybrid")}
    for recipe in recipes.values():
        once(recipe)  # the first one imports methods
    runs = interleave({name: partial(once, recipe) for name, recipe in recipes.items()}, repeats)
    return {
        name: {
            "attach_ms": summarise([a for a, _ in several]).to_dict(),
            "detach_ms": summarise([d for _, d in several]).to_dict(),
        }
        for name, several in runs.items()
    }

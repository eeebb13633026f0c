"""What is compared on the set of tasks, and how each is tuned and scored."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import autopeft
from autopeft import Recipe, load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.recipe.pooling import pooled
from autopeft.recipe.tasks import for_tasks
from autopeft.tasks import Task, task_set
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial

__all__ = ["BUDGET", "CONTENDERS", "OWN", "TASKS", "options_of", "trained"]

TASKS = ("movie-sentences", "trec", "sms-spam", "disaster-tweets")
OWN = "a LoRA for each task, trained alone"
FOUND = "found by a search"
BUDGET = 221_184
"""Deployed parameters: half of what a LoRA of rank 12 for each of the four tasks has on MiniLM."""

_MODEL, _STEPS, _BATCH, _LENGTH = "minilm", 60, 32, 64
_ROWS = (1_000, 400, 1_000)
_RATES = (1.5e-3, 4.5e-3, 9e-3)
_HEAD = {"head": {"learning_rate": 1e-2}}
_SPACE = Path(__file__).parent / "space.yaml"
_ITEMS: dict[str, Any] = {
    OWN: {"lora": {"rank": 12}},
    "one LoRA for all": {"lora": {"rank": 24}},
    "switch": {"switch": [{"lora": {"rank": 6}}]},
    "MOELoRA": {"task_route": {"children": [{"lora": {"rank": 3, "std": 0.01}}], "copies": 8, "vector": 32}},
    "MoA": {"moa": [{"lora": {"rank": 5}}]},
    "Hyperformer++": {
        "hyperformer": {"heads": "stack", "bottleneck": 24, "vector": 16, "hidden": 32, "width": 8}
    },
}
CONTENDERS = (*_ITEMS, FOUND)


def options_of(contender: str) -> list[Recipe]:
    """The ways in which a contender is tried on *select*: rates."""
    found = []
    for rate in _RATES:
        training = {"learning_rate": rate, "groups": _HEAD}
        layers = [{"attach": [_ITEMS[contender]]}]
        tree = {"autopeft": 2, "name": "of-several", "layers": layers, "training": training}
        recipe = pooled(Recipe.from_dict(tree), "mean")
        found.append(recipe if contender == OWN else for_tasks(recipe, TASKS))
    return found


def _task(name: str, draw: int) -> Task:
    return load_task(name, seed=draw).subset(*_ROWS, seed=draw)


@lru_cache(maxsize=6)
def _data(names: tuple[str, ...], draw: int) -> EncodedTask:
    task = task_set([_task(name, draw) for name in names])
    return encode(task, load_tokenizer(resolve_model(_MODEL)), _LENGTH)


@lru_cache(maxsize=6)
def _model(names: tuple[str, ...], draw: int) -> Any:
    task = _data(names, draw).task
    return task.task_kind.head.load_model(resolve_model(_MODEL), task.labels, dtype=torch.bfloat16)


def _run(names: tuple[str, ...], draw: int, recipe: Recipe, seed: int, split: str) -> Any:
    plan = TrainingPlan(
        steps=_STEPS * len(names), batch_size=_BATCH, max_length=_LENGTH, seed=seed, device="cpu",
        head_start="probe",
    )  # fmt: skip
    return run_trial(_model(names, draw), recipe, _data(names, draw), plan, splits=(split,))


def _tuned(names: tuple[str, ...], draw: int, options: list[Recipe]) -> dict[str, Any]:
    """The best way by the mean score on *select*, and each task's score on *test* with a fresh seed."""
    tried = [(_run(names, draw, recipe, draw, "select"), recipe) for recipe in options]
    first, best = max(tried, key=lambda found: found[0].score)
    final = _run(names, draw, best, 1_000 + draw, "test")
    by_task = final.by_task.get("test") or {names[0]: final.score}
    return {
        "select": [round(found.score, 5) for found, _ in tried],
        "test": dict(by_task),
        "recipe": best.to_dict(),
        "deployed": first.counts.deployed,
    }


def trained(contender: str, draw: int, folder: Path) -> dict[str, Any]:
    """A contender, tuned on *select* and scored on *test* once.

    Args:
        draw: of rows, splits and seeds.
        folder: for the run of a search.
    """
    if contender == OWN:
        alone = [_tuned((name,), draw, options_of(OWN)) for name in TASKS]
        scores = {name: value for one in alone for name, value in one["test"].items()}
        return {"test": scores, "deployed": sum(one["deployed"] for one in alone), "alone": alone}
    if contender != FOUND:
        return _tuned(TASKS, draw, options_of(contender))
    result = autopeft.search(
        task=task_set([_task(name, draw) for name in TASKS]),
        model=_MODEL, budget=str(BUDGET), space=str(_SPACE), seed=draw, workers=0, device="cpu",
        steps=_STEPS * len(TASKS), trials=8, baselines="none", out=str(folder / f"search-{draw}"),
        train_rows=_ROWS[0] * len(TASKS), select_rows=_ROWS[1] * len(TASKS),
        test_rows=_ROWS[2] * len(TASKS), confirm=1, confirm_seeds=1, max_length=_LENGTH,
    )  # fmt: skip
    recipe = result.winner
    final = _run(TASKS, draw, recipe, 1_000 + draw, "test")
    return {
        "test": dict(final.by_task["test"]),
        "recipe": recipe.to_dict(),
        "deployed": final.counts.deployed,
    }

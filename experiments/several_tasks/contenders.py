"""What is compared on the set of tasks, and how each is tuned and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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

__all__ = ["OWN", "PARTS", "Part", "options_of", "trained"]

OWN = "a LoRA for each task, trained alone"
FOUND = "found by a search"
_SPACE = Path(__file__).parent / "space.yaml"


@dataclass(frozen=True)
class Part:
    """A backbone, its tasks, and what is compared on them.

    Attributes:
        items: the contenders that are no search, by name.
        budget: deployed parameters of what a search finds: half of what a LoRA for each task has.
        steps: of a training of one task; of all together as often as there are tasks.
        rows: of train, select and test of each task.
        rates: of which the best is taken on *select*.
        own_head: whether each task has a new head, which reads the mean of all tokens.
    """

    model: str
    tasks: tuple[str, ...]
    items: Mapping[str, Any]
    budget: int
    steps: int
    batch: int
    length: int
    rows: tuple[int, int, int]
    rates: tuple[float, ...]
    own_head: bool

    @property
    def contenders(self) -> tuple[str, ...]:
        """All of them, in the order in which they run."""
        return (*self.items, FOUND)


PARTS = {
    "minilm": Part(
        model="minilm",
        tasks=("movie-sentences", "trec", "sms-spam", "disaster-tweets"),
        items={
            OWN: {"lora": {"rank": 12}},
            "one LoRA for all": {"lora": {"rank": 24}},
            "switch": {"switch": [{"lora": {"rank": 6}}]},
            "MOELoRA": {
                "task_route": {"children": [{"lora": {"rank": 3, "std": 0.01}}], "copies": 8, "vector": 32}
            },
            "MoA": {"moa": [{"lora": {"rank": 5}}]},
            "Hyperformer++": {
                "hyperformer": {"heads": "stack", "bottleneck": 24, "vector": 16, "hidden": 32, "width": 8}
            },
        },
        budget=221_184,
        steps=60,
        batch=32,
        length=64,
        rows=(1_000, 400, 1_000),
        rates=(1.5e-3, 4.5e-3, 9e-3),
        own_head=True,
    ),
    "smollm2": Part(
        model="smollm2-135m",
        tasks=(
            "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2",
            "gym:spell_backward?min_word_len=3&max_word_len=6",
            "gym:letter_counting?min_words=3&max_words=5",
        ),
        items={
            OWN: {"lora": {"rank": 8}},
            "one LoRA for all": {"lora": {"rank": 12}},
            "switch": {"switch": [{"lora": {"rank": 4}}]},
            "MOELoRA": {
                "task_route": {"children": [{"lora": {"rank": 3, "std": 0.01}}], "copies": 4, "vector": 32}
            },
            "MoA": {"moa": [{"lora": {"rank": 3}}]},
            "Hyperformer++": {
                "hyperformer": {"heads": "stack", "bottleneck": 48, "vector": 16, "hidden": 32, "width": 8}
            },
            "MixLoRA": {"mixlora": {"experts": 3, "top_k": 2, "rank": 1}},
        },
        budget=691_200,
        steps=30,
        batch=16,
        length=96,
        rows=(1_000, 200, 400),
        rates=(1e-3, 3e-3, 9e-3),
        own_head=False,
    ),
}


def options_of(part: str, contender: str) -> list[Recipe]:
    """The ways in which a contender is tried on *select*: rates."""
    found = []
    for rate in PARTS[part].rates:
        groups = {"groups": {"head": {"learning_rate": 1e-2}}} if PARTS[part].own_head else {}
        layers = [{"attach": [PARTS[part].items[contender]]}]
        tree = {"autopeft": 2, "name": "of-several", "layers": layers}
        recipe = Recipe.from_dict({**tree, "training": {"learning_rate": rate, **groups}})
        recipe = pooled(recipe, "mean" if PARTS[part].own_head else "own")
        found.append(recipe if contender == OWN else for_tasks(recipe, _names(part)))
    return found


def _names(part: str) -> list[str]:
    return [_task(part, name, 0).name for name in PARTS[part].tasks]


@lru_cache(maxsize=8)
def _task(part: str, name: str, draw: int) -> Task:
    metric = None if PARTS[part].own_head else "likelihood"
    return load_task(name, seed=draw, metric=metric).subset(*PARTS[part].rows, seed=draw)


@lru_cache(maxsize=6)
def _data(part: str, names: tuple[str, ...], draw: int) -> EncodedTask:
    task = task_set([_task(part, name, draw) for name in names])
    return encode(task, load_tokenizer(resolve_model(PARTS[part].model)), PARTS[part].length)


@lru_cache(maxsize=6)
def _model(part: str, names: tuple[str, ...], draw: int) -> Any:
    task = _data(part, names, draw).task
    source = resolve_model(PARTS[part].model)
    return task.task_kind.head.load_model(source, task.labels, dtype=torch.bfloat16)


def _run(part: str, names: tuple[str, ...], draw: int, recipe: Recipe, seed: int, split: str) -> Any:
    how = PARTS[part]
    plan = TrainingPlan(
        steps=how.steps * len(names), batch_size=how.batch, max_length=how.length, seed=seed, device="cpu",
        head_start="probe",
    )  # fmt: skip
    return run_trial(_model(part, names, draw), recipe, _data(part, names, draw), plan, splits=(split,))


def _tuned(part: str, names: tuple[str, ...], draw: int, options: list[Recipe]) -> dict[str, Any]:
    """The best way by the mean score on *select*, and each task's score on *test* with a fresh seed."""
    tried = [(_run(part, names, draw, recipe, draw, "select"), recipe) for recipe in options]
    first, best = max(tried, key=lambda found: found[0].score)
    final = _run(part, names, draw, best, 1_000 + draw, "test")
    by_task = final.by_task.get("test") or {_task(part, names[0], draw).name: final.score}
    return {
        "select": [round(found.score, 5) for found, _ in tried],
        "test": dict(by_task),
        "recipe": best.to_dict(),
        "deployed": first.counts.deployed,
    }


def trained(part: str, contender: str, draw: int, folder: Path) -> dict[str, Any]:
    """A contender, tuned on *select* and scored on *test* once.

    Args:
        draw: of rows, splits and seeds.
        folder: for the run of a search.
    """
    how = PARTS[part]
    if contender == OWN:
        alone = [_tuned(part, (name,), draw, options_of(part, OWN)) for name in how.tasks]
        scores = {name: value for one in alone for name, value in one["test"].items()}
        return {"test": scores, "deployed": sum(one["deployed"] for one in alone), "alone": alone}
    if contender != FOUND:
        return _tuned(part, how.tasks, draw, options_of(part, contender))
    count = len(how.tasks)
    result = autopeft.search(
        task=task_set([_task(part, name, draw) for name in how.tasks]),
        model=how.model, budget=str(how.budget), space=str(_SPACE), seed=draw, workers=0, device="cpu",
        steps=how.steps * count, batch_size=how.batch, trials=8, baselines="none",
        out=str(folder / f"search-{part}-{draw}"), train_rows=how.rows[0] * count,
        select_rows=how.rows[1] * count, test_rows=how.rows[2] * count, confirm=1, confirm_seeds=1,
        max_length=how.length,
    )  # fmt: skip
    final = _run(part, how.tasks, draw, result.winner, 1_000 + draw, "test")
    return {
        "test": dict(final.by_task["test"]),
        "recipe": result.winner.to_dict(),
        "deployed": final.counts.deployed,
    }

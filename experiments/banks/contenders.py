"""How the bank is made, and how each contender of a cell is chosen and scored."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from cells import (
    KINDS,
    SOURCE_ROWS,
    SOURCE_SEED,
    SOURCE_STEPS,
    SOURCES,
    STEPS,
    Cell,
    all_of,
    cluster_name,
    inputs_of,
    named,
    options_of,
    source_recipe,
)

import autopeft
from autopeft import bank, load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.hybrid import pinned
from autopeft.recipe.pooling import unpooled
from autopeft.starts.ranking import rank
from autopeft.tasks import Task, cluster_of, task_set
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.training import TrainingPlan, run_trial

__all__ = ["in_folder", "make_bank", "trained"]

_LENGTH, _SELECT, _TEST = 64, 400, 1_000
_FRESH = (1, 2)  # of the draw's own seed, for the two that are scored on test


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in `folder`, where the bank is."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# The bank
# ------------------------------------------------------------------------------------------------------------


def make_bank(part: slice) -> None:
    """Train what the bank lacks: each source as each kind, and for each cluster one adapter on all others."""
    wanted = [(source, kind) for source in SOURCES for kind in KINDS]
    jobs = [*((named(*each), each) for each in wanted), *((all_of(c), c) for c in sorted(_clusters()))]
    for name, what in jobs[part]:
        if (bank.BANK / name).exists():
            continue
        shutil.rmtree(f"runs/{name}", ignore_errors=True)  # of a training that was cut off
        if isinstance(what, tuple):
            task, recipe, steps = _source(what[0]), source_recipe(*what), SOURCE_STEPS
            if task.kind != "classification":  # tags and answers are read at the tokens
                recipe = unpooled(recipe)
        else:
            others = [_source(source) for source in SOURCES if cluster_of(source) != what]
            # The heads of a set read what the model gives them.
            task, recipe = task_set(others), unpooled(source_recipe(name, "adapter"))
            steps = SOURCE_STEPS * len(others)
        found = autopeft.train(
            recipe=recipe,
            task=task,
            model="minilm",
            steps=steps,
            seed=SOURCE_SEED,
            max_length=_LENGTH,
            precision="bf16",
            device="cpu",
            out=f"runs/{name}",
        )
        bank.add(str(found.folder), name)


def _clusters() -> set[str]:
    return {str(cluster_of(source)) for source in SOURCES}


def _source(name: str) -> Task:
    return load_task(name, seed=SOURCE_SEED).subset(SOURCE_ROWS, _SELECT, _SELECT, seed=SOURCE_SEED)


# A cell
# ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _task(cell: Cell) -> Task:
    return load_task(cell.task, seed=cell.draw).subset(cell.rows, _SELECT, _TEST, seed=cell.draw)


@lru_cache(maxsize=1)
def _data(cell: Cell) -> EncodedTask:
    return encode(_task(cell), load_tokenizer(resolve_model("minilm")), _LENGTH)


@lru_cache(maxsize=1)
def _model(task: str, draw: int) -> Any:
    whole = load_task(task, seed=draw)
    return whole.task_kind.head.load_model(resolve_model("minilm"), whole.labels, dtype=torch.bfloat16)


@lru_cache(maxsize=1)
def _ranked(cell: Cell) -> dict[str, list[str]]:
    """What the target is given, the best start first; its training rows alone are looked at."""
    starts = [start.name for start in rank(task=_task(cell), model="minilm", seed=cell.draw).starts]
    given = {kind: set(inputs_of(cell.task, kind)) for kind in KINDS}
    found = {kind: [name for name in starts if name in names] for kind, names in given.items()}
    return found | {"all": [all_of(cluster_name(cell.task))]}


def trained(cell: Cell, contender: str) -> dict[str, Any]:
    """The best of a contender's four ways on *select*, and what two fresh seeds of it score."""
    ranked = _ranked(cell)
    shuffled = random.Random(cell.draw).sample(ranked["lora"], len(ranked["lora"]))
    data, model = _data(cell), _model(cell.task, cell.draw)
    tried = []
    for recipe in map(pinned, options_of(contender, ranked, shuffled)):
        done = run_trial(model, recipe, data, _plan(cell.draw), splits=("select",))
        tried.append((done.calibrated_losses["select"], done.scores["select"], recipe, done))
    loss, score, best, first = min(tried, key=lambda each: each[0])
    scores = [
        run_trial(model, best, data, _plan(10 * cell.draw + seed), splits=("test",)).scores["test"]
        for seed in _FRESH
    ]
    return {
        "select": score,
        "select_loss": loss,
        "tried": [round(score, 5) for _, score, _, _ in tried],
        "test": scores,
        "recipe": best.to_dict(),
        "deployed": first.counts.deployed,
        "trained": first.counts.trained,
        "start": ranked["adapter"][0] if "adapter" in contender else ranked["lora"][0],
    }


def _plan(seed: int) -> TrainingPlan:
    return TrainingPlan(
        steps=STEPS, batch_size=32, max_length=_LENGTH, seed=seed, device="cpu", head_start="probe"
    )

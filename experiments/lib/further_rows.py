"""A task whose place of *test* is taken by further rows of its training pool, for what is explored.

What is explored on *test* cannot be confirmed on it. The further rows are none of the *test* splits that the
first round of `experiments/payoff` has. Rows to train and to choose on may be, and later rounds draw from
all of them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from autopeft import load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.tasks import Task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.splits import stratified_order
from autopeft.training import TrainingPlan

__all__ = [
    "PAYOFF_SEEDS",
    "backbone_in_bf16",
    "encoded_with_further_rows",
    "quick_plan",
    "with_further_rows",
]

PAYOFF_SEEDS = (200, 201, 202)
_MOST = 2_000  # training rows of any cell: the further ones lie behind them in the pool
_LENGTH = 64


@lru_cache(maxsize=1)
def with_further_rows(name: str, rows: int, *, seed: int, select: int = 400, further: int = 1_000) -> Task:
    """A packaged task with `rows` to train on, `select` to choose on, and `further` in the place of *test*.

    Args:
        rows: at most 2,000; fewer rows lie inside more of the same seed.
        seed: of the split.
    """
    whole = load_task(name, seed=seed)
    kept: set[str] = set()
    for other in PAYOFF_SEEDS:
        kept |= set(load_task(name, seed=other).splits["test"].texts)
    pool = whole.splits["train"]
    order = stratified_order(pool.texts, pool.pairs, whole.task_kind.schema.strata(pool.labels), seed)
    behind = [i for i in order[_MOST:] if pool.texts[i] not in kept][:further]
    splits = {**whole.splits, "train": pool.take(order[:rows]), "test": pool.take(behind)}
    return replace(whole, splits=splits).subset(select=select, seed=seed)


@lru_cache(maxsize=1)
def encoded_with_further_rows(name: str, rows: int, *, seed: int, model: str = "minilm") -> EncodedTask:
    """The same as a backbone reads it."""
    task = with_further_rows(name, rows, seed=seed)
    return encode(task, load_tokenizer(resolve_model(model)), _LENGTH)


@lru_cache(maxsize=1)
def backbone_in_bf16(name: str, model: str = "minilm") -> Any:
    """A backbone with the head of a packaged task, as a quick search holds it."""
    task = load_task(name)
    return task.task_kind.head.load_model(resolve_model(model), task.labels, dtype=torch.bfloat16)


def quick_plan(steps: int, seed: int) -> TrainingPlan:
    """A training as a quick search has it: 32 rows a step, the head from its probe."""
    return TrainingPlan(
        steps=steps, batch_size=32, max_length=_LENGTH, seed=seed, device="cpu", head_start="probe"
    )

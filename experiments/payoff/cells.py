"""What is compared on what: cells, searches and contenders, all fixed before the first run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autopeft.tasks import cluster_of

__all__ = ["CLUSTERS", "CONTENDERS", "FIRST_ONLY", "SEEDS", "Cell", "cells", "setting", "wanted"]

TASKS = ("trec", "movie-sentences", "subjectivity", "sms-spam", "disaster-tweets")
CLUSTERS = {task: str(cluster_of(task)) for task in TASKS}
"""Tasks that share texts are one cluster."""

ROWS, BUDGETS = (100, 500, 2_000), ("0.5%", "0.04%")
SEEDS = (200, 201)
"""Of the searches. Each draws splits, rows and everything else anew; none was used while the product was
made."""

FIRST_ONLY = ("LoRA, equal CPU", "full fine-tuning")
"""Contenders beside the first search of a cell of 2,000 rows on MiniLM alone: the one costs as much as the
search, and a step of the other several times as much as a recipe's."""

CONTENDERS = (
    "winner",
    "tuned LoRA",
    "LoRA, equal CPU",
    "LoRA as users take it",
    "portfolio's first",
    "best single method",
    "head alone",
    "full fine-tuning",
)
_NOT_LARGER = (*FIRST_ONLY, "best single method")
_LARGER = tuple((task, rows) for task in ("trec", "movie-sentences") for rows in (100, 2_000))


@dataclass(frozen=True)
class Cell:
    """A task, so many training rows, a budget and a backbone."""

    model: str
    task: str
    rows: int
    budget: str

    def __str__(self) -> str:
        return f"{self.model}/{self.task}/{self.rows}/{self.budget}"


def cells() -> Iterator[tuple[Cell, int]]:
    """Every search: its cell and its seed, all cells of a seed before the next."""
    for seed in SEEDS:
        for budget in BUDGETS:
            for rows in ROWS:
                for task in CLUSTERS:
                    yield Cell("minilm", task, rows, budget), seed
        if seed == SEEDS[0]:
            for task, rows in _LARGER:
                yield Cell("mpnet-base", task, rows, "0.5%"), seed


def wanted(cell: Cell, seed: int) -> list[str]:
    """The contenders of one search."""
    if cell.model != "minilm":
        return [c for c in CONTENDERS if c not in _NOT_LARGER]
    dear = seed == SEEDS[0] and cell.rows == max(ROWS)
    return [c for c in CONTENDERS if dear or c not in FIRST_ONLY]


def setting(cell: Cell, seed: int) -> dict[str, Any]:
    """The search of a cell: a quick one, as long as the package's on such a backbone. Every number is given,
    so that a slow machine tries as much as a fast one."""
    large = cell.model != "minilm"
    return {
        "task": cell.task,
        "model": cell.model,
        "budget": cell.budget,
        "seed": seed,
        "effort": "quick",
        "trials": 8 if large else 12,
        "steps": 60,
        "batch_size": 16 if large else 32,
        "confirm_seeds": 3,
        "precision": "bf16",
        "final_precision": "bf16",
        "train_rows": cell.rows,
        "select_rows": 400,
        "test_rows": 1_000,
        "max_length": 64,
        "head_start": "probe",
        "baselines": "lora,head",
        "stand_in": False,
    }

"""What is compared on what: cells, searches and contenders, all fixed before the first run of each round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, product, takewhile
from typing import Any

from autopeft.tasks import cluster_of

__all__ = [
    "ALPHA",
    "CLUSTERS",
    "CONTENDERS",
    "FEW_SEEDS",
    "ROUNDS",
    "SEEDS",
    "TOLD",
    "Cell",
    "cells",
    "earlier",
    "setting",
    "wanted",
]

TASKS = ("trec", "movie-sentences", "subjectivity", "sms-spam", "disaster-tweets")
CLUSTERS = {task: str(cluster_of(task)) for task in TASKS}
"""Tasks that share texts are one cluster."""

ROWS, BUDGETS = (100, 500, 2_000), ("0.5%", "0.04%")
ROUNDS = ((200,), (400, 401), (500, 501, 502, 503))
"""Seeds of the searches of each round: the first, which was stopped before its second searches, and the two
confirmations. Each draws splits, rows and everything else anew; none was used while the product was made."""

SEEDS, FEW_SEEDS = (500, 501), ROUNDS[-1]
"""Of the second confirmation: those of all its cells, and those with 100 rows, where searches differ most."""

ALPHA = 0.025
"""Half of the first round's, for each confirmation."""

CONTENDERS = (
    "winner",
    "tuned LoRA",
    "LoRA, equal CPU",
    "LoRA as users take it",
    "the same, read alike",
    "portfolio's first",
    "best single method",
    "head alone",
    "full fine-tuning",
)
"""All that is compared in any round."""

TOLD = (
    "winner",
    "tuned LoRA",
    "LoRA as users take it",
    "the same, read alike",
    "portfolio's first",
    "head alone",
)
"""What the confirmations compare: what claims are about, and what costs little beside it."""

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
    """Every search of the second confirmation: its cell and its seed, all cells of a seed before the next."""
    for seed in FEW_SEEDS:
        for budget, rows in product(BUDGETS, ROWS):
            if rows == 100 or (budget == "0.04%" and seed in SEEDS):
                for task in CLUSTERS:
                    yield Cell("minilm", task, rows, budget), seed
    for task, rows in _LARGER:
        yield Cell("mpnet-base", task, rows, "0.5%"), SEEDS[0]


def earlier(seed: int) -> tuple[tuple[int, ...], ...]:
    """The rounds before that of a seed, whose *test* rows are not its own; none of a seed of no round."""
    return tuple(takewhile(lambda seeds: seed not in seeds, ROUNDS)) if seed in chain(*ROUNDS) else ()


def wanted() -> list[str]:
    """The contenders of one search."""
    return list(TOLD)


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
        "trials": 8,
        "steps": 60,
        "batch_size": 16 if large else 32,
        "confirm": 2,
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

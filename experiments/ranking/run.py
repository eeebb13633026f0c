"""By what should recipes be ranked on few rows of *select*?

    python experiments/ranking/run.py --part 0/2      # 90 minutes of one core; beside it --part 1/2
    python experiments/ranking/run.py --tables        # what there is

Recipes are trained with two seeds each and scored on 400 rows of *select* and on further rows of the
training pool. By each criterion the best recipe is chosen with one seed, and its accuracy with the other seed
on the further rows is told, as that of a search's winner would be. None of the further rows was in *test* in
the first round of `experiments/payoff`. Logits stay in `runs/`, which is not kept; what a training came to
stands in `results/trainings.jsonl` and is not trained again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.further_rows import backbone_in_bf16, encoded_with_further_rows, quick_plan
from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows
from tables import criteria, tables

from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.graph import build_graph
from autopeft.hybrid import Hybrid
from autopeft.search.portfolio.templates import fitted, templates
from autopeft.search.selection.baselines import lora_baseline
from autopeft.training import predict, run_trial

__all__ = ["Cell", "Training", "cells", "needed", "recipes"]

HERE = Path(__file__).parent
RESULTS, LOGITS = HERE / "results" / "trainings.jsonl", HERE / "runs"
MODEL, STEPS = "minilm", 60
TASKS = ("trec", "movie-sentences", "subjectivity", "sms-spam", "disaster-tweets")
SPLIT, SEEDS = 700, (0, 1)
SINGLES = ("dora", "krona", "ia3", "bitfit", "serial adapter", "parallel adapter")


@dataclass(frozen=True)
class Cell:
    """A task, so many training rows and a budget."""

    task: str
    rows: int
    budget: str


@dataclass(frozen=True)
class Training:
    """All that decides one training; `hash` is the recipe's."""

    task: str
    rows: int
    budget: str
    hash: str
    seed: int


def cells() -> Iterator[Cell]:
    """What is asked, the cells of few rows first."""
    for rows, budget in ((100, "0.5%"), (500, "0.5%"), (100, "0.04%"), (2_000, "0.5%")):
        for task in TASKS:
            yield Cell(task, rows, budget)


@lru_cache
def recipes(budget: str) -> dict[str, Recipe]:
    """By hash: LoRA at three rates and the one beyond, on all layers and on the last half, and methods alone
    at their higher rate. At a budget that is too small for LoRA on all layers it is tried at the middle rate
    and the next higher one, at each place of the baseline."""
    spec = spec_of(load_config(resolve_model(MODEL)))
    limit = Budget.parse(budget)
    baseline = lora_baseline(spec, limit.limits(spec), 3)
    assert baseline is not None
    first = range(baseline.first_runs)
    beyond = [j for i in first for j in baseline.beyond.get(i, ())]
    tried = [Recipe.from_dict(dict(baseline.candidates[i])) for i in (*first, *beyond)]
    slowest = min(tried[i].training.learning_rate for i in first)
    found = [recipe for recipe in tried if recipe.training.learning_rate >= slowest]
    for name in SINGLES:
        found += [m.recipe for t in templates() if t.name == name for m in fitted(t, spec, limit)[-1:]]
    return {build_graph(recipe, spec).trial_hash(): recipe for recipe in found}


def needed() -> Iterator[Training]:
    """Every training, one cell after the other."""
    for cell in cells():
        for seed in SEEDS:
            for key in recipes(cell.budget):
                yield Training(cell.task, cell.rows, cell.budget, key, seed)


def measure(training: Training) -> dict[str, Any]:
    """What each criterion makes of one training."""
    t = training
    data, told = encoded_with_further_rows(t.task, t.rows, seed=SPLIT), dict[str, Any]()
    plan = quick_plan(STEPS, t.seed)

    def keep(hybrid: Hybrid, _: Mapping[str, float]) -> None:
        for name in ("select", "test"):
            told[name] = predict(hybrid.model, data.splits[name])

    done = run_trial(backbone_in_bf16(t.task), recipes(t.budget)[t.hash], data, plan, keep=keep)
    labels = {name: np.asarray(data.splits[name].truth) for name in told}
    LOGITS.mkdir(exist_ok=True)
    np.savez(
        LOGITS / f"{t.task}-{t.rows}-{t.budget.rstrip('%')}-{t.hash}-{t.seed}.npz",
        **told, **{f"{name}_labels": values for name, values in labels.items()},
    )  # fmt: skip
    found = {name: criteria(told[name], labels[name]) for name in told}
    return {"select": found["select"], "further": found["test"], "seconds": round(done.seconds, 1)}


def main() -> None:
    asked = asked_part(__doc__, "cell")
    known = {Training(*(row[f.name] for f in fields(Training))) for row in read_rows(RESULTS)}
    mine = () if asked is None else list(cells())[asked]
    for training in needed():
        if training in known or Cell(training.task, training.rows, training.budget) not in mine:
            continue
        row = asdict(training) | {"recipe": recipes(training.budget)[training.hash].name} | measure(training)
        append_row(RESULTS, row)
        note(" ".join(str(row[k]) for k in ("task", "rows", "budget", "recipe", "seed", "select", "further")))
    print(tables(read_rows(RESULTS), {cell.budget: recipes(cell.budget) for cell in cells()}))


if __name__ == "__main__":
    main()

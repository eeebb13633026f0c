"""How fast may a task head learn, and the hidden layers that it may have?

    python experiments/head_rates/run.py --part 0/2   # half an hour of one core; beside it --part 1/2
    python experiments/head_rates/run.py --tables

LoRA on all layers, as a quick search trains it: 60 steps, the backbone in bf16, the head from its probe,
reading what the search's probe finds better. The head of `mpnet-base` has a layer of 768 × 768 and a tanh
before its last map: that map learns at 1e-2, and the hidden layer at each of several rates. MiniLM's head is
one map, which learns at each of several rates. Trainings are kept in `results/trainings.jsonl`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows
from lib.worker import run_here

from autopeft import Recipe
from autopeft.recipe.pooling import pooled
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare, worker_setup

__all__ = ["recipe", "tables"]

RESULTS = Path(__file__).parent / "results" / "trainings.jsonl"
RATE, LAST, STEPS = 4.5e-3, 1e-2, 60
RANKS, BATCHES = {"mpnet-base": 14, "minilm": 12}, {"mpnet-base": 16, "minilm": 32}
RATES = {"mpnet-base": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4), "minilm": (3e-2, 1e-2, 3e-3, 1e-3)}
"""Of the hidden layers of the one, and of the last map of the other."""
CELLS = tuple(product(RATES, ("trec", "movie-sentences"), (2_000, 100)))
SPLIT, SEEDS = 730, (0, 1)
LOST = 0.3  # below the best seed of the cell: near a constant answer


def recipe(model: str, rate: float) -> Recipe:
    """LoRA whose head's hidden layers, or the whole of it where it has none, learn at a rate of their own."""
    groups = {"head": {"learning_rate": rate}}
    if model == "mpnet-base":
        groups = {"head": {"learning_rate": LAST}, "head.hidden": {"learning_rate": rate}}
    return Recipe.from_dict(
        {
            "autopeft": 2,
            "name": "lora",
            "layers": [{"at": "all", "attach": [{"lora": {"rank": RANKS[model]}}]}],
            "training": {"learning_rate": RATE, "groups": groups},
        }
    )


@lru_cache(maxsize=1)
def _ready(model: str, task: str, rows: int) -> Prepared:
    settings: dict[str, Any] = {
        "task": task, "model": model, "budget": "0.5%", "seed": SPLIT, "effort": "quick", "trials": 8,
        "steps": STEPS, "batch_size": BATCHES[model], "precision": "bf16", "train_rows": rows,
        "select_rows": 400, "test_rows": 1_000, "max_length": 64, "head_start": "probe", "stand_in": False,
    }  # fmt: skip
    return prepare(SearchArguments(**settings))


def measure(model: str, task: str, rows: int, rate: float, seed: int) -> dict[str, Any]:
    """Score on *select*, and the loss there that a search ranks by."""
    ready = _ready(model, task, rows)
    told = pooled(recipe(model, rate), ready.space.pooling).to_dict()
    job = TrainJob("one", "trial", "lora", told, seed, STEPS, precision="bf16", rank_by=ready.rank_by)
    (found,) = run_here(worker_setup(ready), job)
    assert found.rank is not None
    return {"select": found.scores["select"], "loss": -found.rank}


def run(asked: slice) -> None:
    """Train what is missing."""
    known = {(r["model"], r["task"], r["rows"], r["rate"], r["seed"]) for r in read_rows(RESULTS)}
    for model, task, rows in CELLS[asked]:
        for rate, seed in product(RATES[model], SEEDS):
            if (model, task, rows, rate, seed) in known:
                continue
            row = {"model": model, "task": task, "rows": rows, "rate": rate, "seed": seed}
            row |= measure(model, task, rows, rate, seed)
            append_row(RESULTS, row)
            note(f"{model} {task} {rows} {rate:g} {seed}: {100 * row['select']:.1f}, loss {row['loss']:.3f}")


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What there is, as Markdown: mean score on *select*, mean loss, and seeds that are lost."""
    return "\n\n".join(_table(model, [r for r in rows if r["model"] == model]) for model in RATES)


def _table(model: str, rows: Sequence[Mapping[str, Any]]) -> str:
    which = "hidden layer" if model == "mpnet-base" else "head"
    lines = [f"| {model}, {which} at | rows | " + " | ".join(f"{rate:g}" for rate in RATES[model]) + " |"]
    lines.append("|---|---|" + "---|" * len(RATES[model]))
    for _, task, size in (cell for cell in CELLS if cell[0] == model):
        of_cell = [r for r in rows if (r["task"], r["rows"]) == (task, size)]
        told = [_cell(of_cell, rate) for rate in RATES[model]]
        lines.append(f"| {task} | {size:,} | {' | '.join(told)} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Mapping[str, Any]], rate: float) -> str:
    """A rate's mean score and loss, and how many of its seeds ended near a constant answer."""
    own = [r for r in rows if r["rate"] == rate]
    if not own:
        return "–"
    best = max(r["select"] for r in rows)
    lost = sum(r["select"] < best - LOST for r in own)
    score, loss = (statistics.fmean(r[key] for r in own) for key in ("select", "loss"))
    return f"{100 * score:.1f}, loss {loss:.2f}" + (f" ({lost} of {len(own)} lost)" if lost else "")


def main() -> None:
    asked = asked_part(__doc__, "cell")
    if asked is not None:
        run(asked)
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()

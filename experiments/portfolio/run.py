"""Records what the portfolio's recipes score on many tasks, with few and many rows, under several budgets.

    python experiments/portfolio/run.py               # hours of one core; goes on where it stopped
    python experiments/portfolio/run.py --dry-run     # how many trainings are left, and what they will take
    python experiments/portfolio/run.py --part 0/2    # half of the trainings, beside another process
    python experiments/portfolio/run.py --tables      # what there is
    python experiments/portfolio/run.py --evaluate    # what recommendations are worth, clusters left out
    python experiments/portfolio/run.py --ship        # write what the package ships: evidence.json

The templates of the package (`autopeft/search/portfolio/templates.yaml`) are fitted to each budget and
trained as a quick search trains: 60 steps of 32 with the backbone in bf16, the head from its probe, reading
what a search's probe finds better (`results/readings.jsonl`). Scores and mean losses are those on *select*,
on all of its rows but with the seed 100, which has 400; *test* is never read. Each seed draws splits, rows,
modules and batches of its own. A recipe that several budgets come to is trained once. Trainings are kept in
`results/trainings.jsonl`, those of another reading too, which are not used.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from evaluation import asked_everywhere, evaluation
from lib.by_pooler import BY_POOLER, read_as
from lib.measuring import note
from lib.parts import part_of
from lib.storage import append_row, read_rows, write_whole

from autopeft import load_task
from autopeft.assets import load_config, load_tokenizer, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.recipe.pooling import Pooling
from autopeft.search.planning.probes import find_pooling
from autopeft.search.portfolio import evidence
from autopeft.search.portfolio.evidence import Key, reference_of
from autopeft.search.portfolio.packing import packed
from autopeft.search.portfolio.templates import FittedRecipe, fitted, templates
from autopeft.spec import BackboneSpec
from autopeft.tasks import Rows
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.load import cluster_of
from autopeft.training import TrainingPlan, run_trial

__all__ = ["Cell", "cells", "needed"]

TRAININGS = Path(__file__).parent / "results" / "trainings.jsonl"
READINGS = TRAININGS.with_name("readings.jsonl")
LENGTH, BATCH, STEPS = 64, 32, 60
SELECT, SELECT_OF = 2_000, {100: 400}
"""Rows of *select* at most (tasks have 500 to 1,100), fewer on the seed 100: differences on 400 rows are off
by as much again as those of trainings are."""
TASKS = ("trec", "movie-sentences", "sms-spam", "trec-fine", "subjectivity", "disaster-tweets")
ROWS = (2_000, 100, 500)
BUDGETS = ("0.5%", "0.04%", "0.15%")
SEEDS = (101, 100)
LIKELIEST = (
    "lora, upper half", "lora on every map, upper half", "serial adapter", "lora + ia3", "lora + krona + ia3",
    "lora + parallel adapter", "lora + parallel adapter, upper half",
    "krona on attention and feed-forward + ia3",
)  # fmt: skip
"""Templates that were level with LoRA, or better, in what was trained before."""
_SECONDS = 5.0  # of a training, where none is recorded


@dataclass(frozen=True)
class Cell:
    """What a recipe is trained on."""

    model: str
    task: str
    rows: int
    seed: int


def cells(model: str, seed: int) -> Iterator[Cell]:
    """The cells of a seed."""
    for rows in ROWS:
        for task in TASKS:
            yield Cell(model, task, rows, seed)


@lru_cache
def _spec(model: str) -> BackboneSpec:
    return spec_of(load_config(resolve_model(model)))


def _models(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


@lru_cache
def recipes(model: str, budget: str) -> tuple[FittedRecipe, ...]:
    """The recipes of a budget."""
    spec = _spec(model)
    return tuple(m for template in templates() for m in fitted(template, spec, Budget.parse(budget)))


def needed(model: str, known: set[tuple[Any, ...]]) -> Iterator[tuple[Cell, FittedRecipe]]:
    """The trainings that are not recorded, each once: LoRA and the likeliest templates at their two likeliest
    rates first, on one seed and then on the other, then at the third rate, then all templates; of each the
    budgets of `payoff` before the third. What is not recorded is not recommended, so that the order costs
    recommendations and biases none."""
    met = set(known)
    soon = [*product(SEEDS, range(2)), *((seed, wave) for wave in range(2, 6) for seed in SEEDS)]
    orders = [(*step, b) for budgets in (BUDGETS[:2], BUDGETS[2:]) for step in soon for b in budgets]
    for seed, wave, budget in orders:
        found = recipes(model, budget)
        plain = reference_of([Key(m.template, m.rate) for m in found])
        first = {*LIKELIEST, *(() if plain is None else (plain.template,))}
        for cell, member in product(cells(model, seed), found):
            key = (*asdict(cell).values(), member.hash, STEPS)
            rates = sum(m.template == member.template for m in found)
            turn = _turn(cell.rows, member.rate, rates)
            if key not in met and wave == (turn if member.template in first else 3 + turn):
                met.add(key)
                yield cell, member


def _turn(rows: int, rate: int, rates: int) -> int:
    """How soon a rate's turn is: few rows want lower ones, as LoRA's sweeps in `payoff` found."""
    order = {100: (1, 0, 2), 500: (1, 2, 0)}.get(rows, (2, 1, 0))
    return [i for i in order if i < rates].index(rate)


@lru_cache(maxsize=1)
def _model(model: str, task: str) -> Any:
    kind = load_task(task)
    return kind.task_kind.head.load_model(resolve_model(model), kind.labels, dtype=torch.bfloat16)


@lru_cache(maxsize=1)
def _data(cell: Cell) -> EncodedTask:
    chosen = load_task(
        cell.task,
        rows=Rows(train=cell.rows, select=SELECT_OF.get(cell.seed, SELECT), test=1_000),
        seed=cell.seed,
        stand_in=False,
    )
    return encode(chosen, load_tokenizer(resolve_model(cell.model)), LENGTH)


def reading(cell: Cell) -> Pooling:
    """What heads read in a cell, as a search's own probe finds it; it is recorded."""
    known = {_cell_of(row): row for row in read_rows(READINGS)}
    if cell not in known:
        plan = TrainingPlan(steps=1, max_length=LENGTH, seed=cell.seed, device="cpu")
        found = find_pooling(resolve_model(cell.model), _data(cell).task, plan, _spec(cell.model))
        assert found is not None
        losses = {"own": round(found.own, 6), "mean": round(found.mean, 6)}
        known[cell] = {**asdict(cell), **losses, "pooling": found.pooling}
        append_row(READINGS, known[cell])
        note(f"{cell.task:16} {cell.rows:5} {cell.seed} {found.own:.3f} {found.mean:.3f} {found.pooling}")
    return cast(Pooling, known[cell]["pooling"])


def _cell_of(row: dict[str, Any]) -> Cell:
    return Cell(*(row[name] for name in Cell.__dataclass_fields__))


def current(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings whose heads read what those of a search do, in cells of which that is known."""
    chosen = {_cell_of(row): row["pooling"] for row in read_rows(READINGS)}
    return [row for row in rows if row.get("reading", "own") == chosen.get(_cell_of(row))]


def measure(cell: Cell, member: FittedRecipe) -> dict[str, Any]:
    """One training as a row."""
    reads = reading(cell)
    plan = TrainingPlan(
        steps=STEPS, batch_size=BATCH, max_length=LENGTH, seed=cell.seed, device="cpu", head_start="probe"
    )
    before = time.process_time()
    recipe = read_as(member.recipe, BY_POOLER if reads == "mean" else reads)  # as all rows so far
    done = run_trial(_model(cell.model, cell.task), recipe, _data(cell), plan, splits=("select",))
    told = asdict(replace(member, recipe=None, counts=None))  # type: ignore[arg-type]
    told = {key: value for key, value in told.items() if value is not None}
    return {
        **asdict(cell),
        **told,
        "reading": reads,
        "steps": STEPS,
        "score": round(done.scores["select"], 6),
        "loss": round(done.losses["select"], 6),
        "deployed": done.counts.deployed,
        "step_time": round(done.measured["step_time"], 5),
        "cpu_seconds": round(time.process_time() - before, 2),
    }


def ship(rows: Sequence[dict[str, Any]]) -> str:
    """The evidence as the package has it, of every backbone that was trained."""
    members = {}
    for model in _models(rows):
        spec = _spec(model)
        shares = {b: round(Budget.parse(b).limits(spec)[1] / spec.parameters, 6) for b in BUDGETS}
        members[model] = {shares[b]: recipes(model, b) for b in BUDGETS}
    return packed(rows, members, read_rows(READINGS), steps=STEPS, batch_size=BATCH)


def _known(rows: Sequence[dict[str, Any]]) -> set[tuple[Any, ...]]:
    keys = (*Cell.__dataclass_fields__, "hash", "steps")
    return {tuple(row[key] for key in keys) for row in rows}


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Each template's best rate less LoRA's on all layers in the same cell, in points of the score,
    averaged over the cells of a task."""
    tasks = [t for t in TASKS if any(r["task"] == t for r in rows)]
    lines = [f"| template | size | {' | '.join(tasks)} |", "|---" * (len(tasks) + 2) + "|"]
    best: dict[tuple[Any, ...], float] = {}
    for r in rows:
        key = (r["template"], r.get("size"), r["task"], r["rows"], r["seed"], r["model"])
        best[key] = max(best.get(key, 0.0), r["score"])
    lora = {key[2:]: score for key, score in best.items() if key[:2] == ("lora", 12)}
    for name, size in dict.fromkeys(key[:2] for key in best):
        told = []
        for task in tasks:
            found = [
                best[key] - lora[key[2:]] for key in best if key[:3] == (name, size, task) and key[2:] in lora
            ]
            told.append(f"{100 * statistics.fmean(found):+.1f}" if found else "–")
        lines.append(f"| {name} | {size or ''} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--part", default="0/1", metavar="K/N", help="the K-th of N shares of the trainings")
    parser.add_argument("--task", action="append", choices=TASKS, help="these alone; default: all")
    parser.add_argument("--dry-run", action="store_true", help="what is left, and what it will take")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    parser.add_argument("--ship", action="store_true", help="write what the package ships, train nothing")
    parser.add_argument("--evaluate", action="store_true", help="print what recommendations are worth")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = current(read_rows(TRAININGS))
    if given.ship:
        target = Path(evidence.__file__).with_name(evidence.FILE)
        write_whole(target, ship(rows))
        note(f"written to {target}")
    if given.evaluate:
        # Before all else, so that nothing is kept from what came before.
        print(f"{asked_everywhere(given.model, {task: str(cluster_of(task)) for task in TASKS})}\n")
        print(evaluation(evidence.read_evidence(ship(rows)), {m: _spec(m) for m in _models(rows)}))
    if given.ship or given.evaluate:
        return
    part, parts = part_of(given.part)
    left = [
        (cell, member)
        for cell, member in needed(given.model, _known(rows))
        if given.task is None or cell.task in given.task
        if crc32(f"{cell} {member.hash}".encode()) % parts == part
    ]
    each = statistics.fmean([r["cpu_seconds"] for r in rows if r["model"] == given.model] or [_SECONDS])
    note(f"{len(left)} trainings are left: {len(left) * each / 3600:.1f} hours of one core")
    if given.dry_run or given.tables:
        print(tables(rows))
        return
    for cell, member in left:
        row = measure(cell, member)
        append_row(TRAININGS, row)
        note(
            f"{cell.task:16} {cell.rows:5} {cell.seed} {member.template:36} {member.size} {row['score']:.4f}"
        )
    print(tables(current(read_rows(TRAININGS))))


if __name__ == "__main__":
    main()

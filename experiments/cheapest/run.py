"""Five searches for the cheapest recipe on each of two tasks: what its steps cost, and what it loses.

    python experiments/cheapest/run.py               # goes on where it stopped; some 100 minutes of one core
    python experiments/cheapest/run.py --task trec   # one task; beside it --task movie-sentences
    python experiments/cheapest/run.py --tables      # what there is

Each is a quick search with `--goal cheapest` at 0.5 %, with a seed of its own, which also splits the data.
Its winner is compared with the LoRA baseline that the search tuned, and with LoRA as users take it: the
largest rank that fits on q and v of all layers, at the highest of its usual rates. All are trained with the
same three fresh seeds. Step times of winner and LoRA are measured by turns, in fp32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.storage import append_row, read_rows
from lib.told import fresh_runs
from lib.worker import load_backbone_and_data, run_here

from autopeft import Recipe
from autopeft.runs.folder import load_run
from autopeft.search.api import search
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare
from autopeft.search.planning.worker_setup import worker_setup
from autopeft.search.portfolio.templates import fitted, templates
from autopeft.search.selection.contender import fresh_seeds
from autopeft.training import run_trial

__all__ = ["lower_bound", "tables"]

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "searches.jsonl", HERE / "runs"
TASKS, SEEDS = ("trec", "movie-sentences"), range(310, 315)
"""Of the search as it is now. Searches of seeds 300 to 303 are of one that was changed since."""

ROUNDS, STEPS = 5, 12


def setting(task: str, seed: int) -> dict[str, Any]:
    """A search; every number is given, so that a slow machine tries as much as a fast one."""
    return {
        "task": task, "seed": seed, "budget": "0.5%", "effort": "quick", "goal": "cheapest", "trials": 8,
        "confirm_seeds": 3, "steps": 60, "train_rows": 2_000, "select_rows": 400, "test_rows": 1_000,
        "max_length": 64, "baselines": "lora,head", "stand_in": False,
    }  # fmt: skip


def searched(task: str, seed: int) -> Path:
    """The folder of a search, which is run, or gone on with, where that is needed."""
    folder = RUNS / f"{task}-{seed}"
    ended = folder / "result.json"
    if not ended.exists() or json.loads(ended.read_text(encoding="utf-8"))["interrupted"]:
        if (folder / "manifest.json").exists():
            found = search(resume=folder, workers=0)
        else:
            found = search(**setting(task, seed), out=folder, workers=0, fresh_baselines=True)
        if found.interrupted:
            sys.exit(f"{folder} was interrupted; run this again to go on with it.")
    return folder


def measure(task: str, seed: int) -> dict[str, Any]:
    """A search as a row."""
    folder, ready = searched(task, seed), prepare(SearchArguments(**setting(task, seed)))
    run = load_run(folder)
    finals = [r for r in run.finals().records if r.state == "complete" and "test" in r.scores]
    winner = Recipe.from_file(folder / "recipe.yaml")
    tuned = {r.seed: r.scores["test"] for r in fresh_runs(finals, run.result(), 0)}
    own = {r.seed: r.scores["test"] for r in finals if r.kind == "test"}
    plain = _plain(ready)
    jobs = [
        TrainJob(f"s{s}", "baseline", "lora", plain.to_dict(), s, ready.effort.steps, splits=("test",))
        for s in fresh_seeds(seed, ready.effort.seeds)
    ]
    taken = run_here(worker_setup(ready), *jobs)
    return {
        "task": task, "seed": seed, "winner": winner.name, "methods": list(winner.methods),
        "lora_returned": not own, "deployed": run.result()["counts"]["deployed"],
        "test": list((own or tuned).values()), "tuned": list(tuned.values()),
        "plain": [r.scores["test"] for r in taken], "finding": run.result()["finding"],
        "cost": _cost(ready, winner, plain), "recipe": winner.to_dict(),
    }  # fmt: skip


def _plain(ready: Prepared) -> Recipe:
    """LoRA as users take it."""
    found = [m for template in templates() for m in fitted(template, ready.spec, ready.budget)]
    return [m.recipe for m in found if m.template == "lora"][-1]


def _cost(ready: Prepared, winner: Recipe, plain: Recipe) -> float:
    """Time of the winner's step over that of plain LoRA, the median over rounds in which both are timed."""
    model, data = load_backbone_and_data(worker_setup(ready))
    plan, ratios = replace(ready.plan, steps=STEPS), list[float]()
    for _ in range(ROUNDS):
        times = [run_trial(model, recipe, data, plan).measured["step_time"] for recipe in (plain, winner)]
        ratios.append(times[1] / times[0])
    return round(statistics.median(ratios), 3)


def lower_bound(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the lower end of its one-sided 95 % interval (Student's t)."""
    mean, n = statistics.fmean(values), len(values)
    return mean, mean - float(t.ppf(0.95, n - 1)) * statistics.stdev(values) / n**0.5


def tables(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the searches say, as Markdown."""
    yield "| task | seed | winner | cost of a step | test | less tuned LoRA | less LoRA as users take it |"
    yield "|---" * 7 + "|"
    for r in rows:
        test, tuned, plain = (100 * statistics.fmean(r[key]) for key in ("test", "tuned", "plain"))
        name = "LoRA is returned" if r["lora_returned"] else r["winner"]
        yield (
            f"| {r['task']} | {r['seed']} | {name} | {r['cost']:.2f} | {test:.1f} | {test - tuned:+.1f} | "
            f"{test - plain:+.1f} |"
        )
    for task in TASKS:
        found = [r for r in rows if r["task"] == task]
        if len(found) > 1:
            cheap = sum(r["cost"] <= 0.6 for r in found)
            told = [
                lower_bound([100 * (statistics.fmean(r["test"]) - statistics.fmean(r[other])) for r in found])
                for other in ("tuned", "plain")
            ]
            yield (
                f"\n{task}: at most 0.6 of the cost in {cheap} of {len(found)} searches; less tuned LoRA "
                f"{told[0][0]:+.2f}, lower bound {told[0][1]:+.2f}; less LoRA as users take it "
                f"{told[1][0]:+.2f}, lower bound {told[1][1]:+.2f}."
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", choices=TASKS, help="default: both")
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {(r["task"], r["seed"]) for r in read_rows(RESULTS)}
    for seed in [] if given.tables else SEEDS:
        for task in given.task or TASKS:
            if (task, seed) not in known:
                row = measure(task, seed)
                append_row(RESULTS, row)
                note(f"{task} {seed} {row['winner']} {row['cost']} {row['finding']}")
    rows = read_rows(RESULTS)
    earlier = [row for row in rows if row["seed"] not in SEEDS]
    print("\n".join(tables([row for row in rows if row["seed"] in SEEDS])))
    print("\n".join(["\nOf the search as it was:\n", *tables(earlier)]))


if __name__ == "__main__":
    main()

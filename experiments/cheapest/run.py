"""Five searches for the cheapest recipe on each of two tasks: what its steps cost, and what it loses.

    python experiments/cheapest/run.py               # goes on where it stopped; some four hours of one core
    python experiments/cheapest/run.py --task trec   # one task; beside it --task movie-sentences
    python experiments/cheapest/run.py --tables      # what there is

Each is a quick search with `--goal cheapest` at 0.5 %, with a seed of its own, which also splits the data.
Its winner is compared with the LoRA baseline that the search tuned, and with LoRA as users take it: the
largest rank that fits on q and v of all layers, at the highest of its usual rates. All are trained with the
same six fresh seeds and scored on *test* and on rows of the task that the search never saw. Step times of
winner and LoRA are measured by turns. These trainings are in fp32.

The first of these seeds are those with which the search trained its finalists again and chose by *select*;
differences with the others are told beside.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.intervals import one_sided
from lib.measuring import commit, note
from lib.searches import finished_search
from lib.storage import append_row, read_rows
from lib.told import fresh_runs
from lib.worker import load_backbone_and_data, run_here

from autopeft import Recipe, load_task
from autopeft.runs.folder import load_run
from autopeft.search.core.jobs import TrainJob
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import Prepared, prepare, worker_setup
from autopeft.search.portfolio.templates import fitted, templates
from autopeft.search.selection.contender import fresh_seeds
from autopeft.tasks import Task
from autopeft.tasks.splits import stratified_order
from autopeft.training import run_trial

__all__ = ["tables", "with_unseen_rows"]

HERE = Path(__file__).parent
RESULTS, RUNS = HERE / "results" / "searches.jsonl", HERE / "runs"
TASKS, SEEDS = ("trec", "movie-sentences"), range(340, 345)
"""Of the search as it is now. Those of earlier rounds are of searches that were changed since."""

EARLIER = (range(330, 335), range(320, 325), range(310, 315), range(300, 304))
TEST_ROWS, FRESH, CHOSE = 2_500, 6, 4
"""Rows that winner and LoRAs are scored on, seeds of each, and how many of them the search chose with. In the
third and the fourth round these were five and three."""
ROUNDS, STEPS = 5, 12


def setting(task: str, seed: int) -> dict[str, Any]:
    """A search; every number is given, so that a slow machine tries as much as a fast one."""
    return {
        "task": task, "seed": seed, "budget": "0.5%", "effort": "quick", "goal": "cheapest", "trials": 8,
        "confirm_seeds": CHOSE, "steps": 60, "train_rows": 2_000, "select_rows": 1_000, "test_rows": 1_000,
        "max_length": 64, "baselines": "lora,head", "stand_in": False,
    }  # fmt: skip


def searched(task: str, seed: int) -> Path:
    """The folder of a search, which is run, or gone on with, where that is needed."""
    folder = RUNS / f"{task}-{seed}"
    finished_search(folder, **setting(task, seed), workers=0, fresh_baselines=True)
    return folder


def measure(task: str, seed: int) -> dict[str, Any]:
    """A search as a row."""
    folder, ready = searched(task, seed), prepare(SearchArguments(**setting(task, seed)))
    run = load_run(folder)
    finals = [r for r in run.finals().records if r.state == "complete" and "test" in r.scores]
    tuned = Recipe.from_dict(dict(fresh_runs(finals, run.result(), 0)[0].recipe))
    winner, plain = Recipe.from_file(folder / "recipe.yaml"), _plain(ready)
    told = {name: r.to_dict() for name, r in (("test", winner), ("tuned", tuned), ("plain", plain))}
    returned = not any(r.kind == "test" for r in finals)
    if returned:
        told["test"] = told["tuned"]
    wide = replace(ready, task=with_unseen_rows(ready.task, seed))
    return {
        "task": task, "seed": seed, "version": commit(), "chose": CHOSE,
        "winner": winner.name, "methods": list(winner.methods), "lora_returned": returned,
        "deployed": run.result()["counts"]["deployed"],
        **_scores(wide, told, seed), "rows": len(wide.task.splits["test"]),
        "finding": run.result()["finding"],
        "cost": _cost(ready, winner, plain), "recipe": winner.to_dict(),
    }  # fmt: skip


def with_unseen_rows(task: Task, seed: int, most: int = TEST_ROWS) -> Task:
    """A task that a search was given, whose *test* has besides all rows that the search did not see, or as
    many as make `most`."""
    pool = load_task(task.name, seed=seed).splits["train"]
    seen = {text for split in task.splits.values() for text in split.texts}
    order = stratified_order(pool.texts, pool.pairs, task.task_kind.schema.strata(pool.labels), seed)
    unseen = [i for i in order if pool.texts[i] not in seen]
    test = task.splits["test"]
    test = test.joined(pool.take(unseen[: max(most - len(test), 0)]))
    return replace(task, splits={**task.splits, "test": test})


def _scores(ready: Prepared, recipes: dict[str, Any], seed: int) -> dict[str, list[float]]:
    """Of each recipe with each fresh seed; equal recipes are trained once."""
    found, known = dict[str, list[float]](), dict[str, list[float]]()
    for name, recipe in recipes.items():
        key = json.dumps(recipe, sort_keys=True)
        if key not in known:
            jobs = [
                TrainJob(f"{name}-{s}", "baseline", name, recipe, s, ready.effort.steps, splits=("test",))
                for s in fresh_seeds(seed, FRESH)
            ]
            known[key] = [r.scores["test"] for r in run_here(worker_setup(ready), *jobs)]
        found[name] = known[key]
    return found


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
            yield f"\n{task}: at most 0.6 of the cost in {cheap} of {len(found)} searches; {_less(found, 0)}."
            chose = max(r.get("chose", 3) for r in found)
            if (free := min(len(r["test"]) for r in found) - chose) > 0:
                yield f"With the {free} seeds that chose nothing: {_less(found, chose)}."


def _less(found: Sequence[dict[str, Any]], since: int) -> str:
    """Differences with the seeds from one on, with their lower bounds."""
    told = []
    for name, other in (("tuned LoRA", "tuned"), ("LoRA as users take it", "plain")):
        means = [[100 * statistics.fmean(r[key][since:]) for key in ("test", other)] for r in found]
        mean, half = one_sided([own - theirs for own, theirs in means])
        told.append(f"less {name} {mean:+.2f}, lower bound {mean - half:+.2f}")
    return "; ".join(told)


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
    for title, seeds in (("", SEEDS), *(("\nOf the search as it was:\n", seeds) for seeds in EARLIER)):
        print("\n".join([title, *tables([row for row in rows if row["seed"] in seeds])]))


if __name__ == "__main__":
    main()

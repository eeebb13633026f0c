"""How should a search spend its steps: on recipes, on their length, on seeds, on rungs?

    python experiments/allocation/run.py --part 0/2   # two hours of one core; beside it --part 1/2
    python experiments/allocation/run.py --tables     # searches replayed on what there is

Recipes as a quick search tries them are trained with several seeds for 30, 60 and 120 steps, from probed
heads, and scored on *select* on the way and on further rows of the pool at the end. A search is then replayed
by drawing recipes and seeds from the recording: every number in it is one of a training. *Test* is never
read. What stands in `results/trainings.jsonl` is not trained again.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.by_pooler import BY_POOLER, read_as
from lib.further_rows import backbone_in_bf16, encoded_with_further_rows, quick_plan
from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows
from replay import tables

from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import Budget
from autopeft.graph import build_graph
from autopeft.search.portfolio.templates import fitted, templates
from autopeft.search.space.repair import repair
from autopeft.search.space.space import Space
from autopeft.training import run_trial

__all__ = ["Training", "needed", "recipes"]

HERE = Path(__file__).parent
RESULTS, SPACE = HERE / "results" / "trainings.jsonl", HERE / "space.yaml"
MODEL, BUDGET, ROWS = "minilm", "0.5%", 2_000
TASKS, SPLIT, SEEDS = ("trec", "movie-sentences"), 710, (0, 1, 2)
HORIZONS = {60: (10, 20, 40), 120: (20, 40), 30: ()}
"""Steps of a training, and those at which it pauses to be scored."""

LORAS = ("lora", "lora, upper half")
"""Those at their lower rate too: among them a LoRA is tuned."""

READINGS = ("mean",)
"""What heads read: as the probe of a search finds it on both tasks. What was recorded before is of `own`."""

PORTFOLIO = (
    "lora", "lora, upper half", "lora, upper third", "lora on every map, upper half", "dora",
    "serial adapter", "parallel adapter, upper half", "lora + ia3", "lora + krona + ia3",
    "lora + parallel adapter",
)  # fmt: skip
DRAWN = 16


@dataclass(frozen=True)
class Training:
    """All that decides one training; `hash` is that of the recipe without what settles its head's reading."""

    pooling: str
    task: str
    hash: str
    steps: int
    seed: int


@lru_cache
def recipes() -> dict[str, tuple[str, Recipe]]:
    """By hash: where a recipe comes from, and the recipe. The portfolio's at their higher rates come first,
    then draws from the default space as it was when they were recorded, at rates that suit so short a
    training. (`drawn, any rate` in the recording are draws from an older one, whose lower rates were for long
    trainings.)"""
    spec = spec_of(load_config(resolve_model(MODEL)))
    limit, rng = Budget.parse(BUDGET), random.Random(0)
    space = Space.from_file(SPACE).for_steps(next(iter(HORIZONS)))
    found: dict[str, tuple[str, Recipe]] = {}
    for name in PORTFOLIO:
        recipe = next(fitted(t, spec, limit)[-1].recipe for t in templates() if t.name == name)
        found[build_graph(recipe, spec).trial_hash()] = (name, recipe)
    for name in LORAS:
        recipe = next(fitted(t, spec, limit)[-2].recipe for t in templates() if t.name == name)
        found[build_graph(recipe, spec).trial_hash()] = (f"{name}, slower", recipe)
    bound = space.bind(spec)
    while len(found) < len(PORTFOLIO) + len(LORAS) + DRAWN:
        recipe = repair(bound, bound.sample(rng), limit).recipe
        found.setdefault(build_graph(recipe, spec).trial_hash(), ("drawn", recipe))
    return found


def needed() -> Iterator[Training]:
    """Every training: the length of today's quick search first, and all recipes of a seed before the next."""
    for pooling in READINGS:
        for steps in HORIZONS:
            for seed in SEEDS:
                for task in TASKS:
                    for key in recipes():
                        yield Training(pooling, task, key, steps, seed)


def measure(training: Training) -> dict[str, Any]:
    """Score and losses on *select* by step, the score on further rows at the end, and what it took."""
    t = training
    data = encoded_with_further_rows(t.task, ROWS, seed=SPLIT)
    plan = quick_plan(t.steps, t.seed)
    reads = BY_POOLER if t.pooling == "mean" else t.pooling  # as all rows so far
    recipe, checkpoint, select = read_as(recipes()[t.hash][1], reads), None, dict[str, Any]()
    begun = time.process_time()
    for until in (*HORIZONS[t.steps], t.steps):
        last = until == t.steps
        done = run_trial(
            backbone_in_bf16(t.task), recipe, data, plan, splits=("select", "test") if last else ("select",),
            until=None if last else until, resume=checkpoint,
        )  # fmt: skip
        checkpoint = done.train.checkpoint
        losses = {"loss": done.losses["select"], "calibrated": done.calibrated_losses["select"]}
        select[str(until)] = {"score": done.scores["select"], **{k: round(v, 6) for k, v in losses.items()}}
    took = {"step_time": done.train.step_time, "cpu_seconds": round(time.process_time() - begun, 1)}
    return {"select": select, "further": done.scores["test"], **took}


def main() -> None:
    asked = asked_part(__doc__, "recipe")
    names = [f.name for f in fields(Training)]
    known = {Training(*({"pooling": "own", **row}[name] for name in names)) for row in read_rows(RESULTS)}
    mine = () if asked is None else set(list(recipes())[asked])
    for training in needed():
        if training in known or training.hash not in mine:
            continue
        row = asdict(training) | {"origin": recipes()[training.hash][0]} | measure(training)
        append_row(RESULTS, row)
        last = row["select"][str(training.steps)]
        told = f"{100 * last['score']:.1f} {last['calibrated']:.3f} further {100 * row['further']:.1f}"
        told += f" ({row['cpu_seconds']} s)"
        note(f"{training.task} {row['origin']:30} {training.steps} {training.seed} {told}")
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()

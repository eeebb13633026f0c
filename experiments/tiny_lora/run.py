"""Where should LoRA sit when rank 1 on q and v of all layers is too large?

    python experiments/tiny_lora/run.py              # ten minutes of one core
    python experiments/tiny_lora/run.py --tables

The largest LoRA of each place inside 2,304 parameters on MiniLM, where q and v of all layers take 9,216, as a
quick search trains: 2,000 rows, 60 steps of 32 rows, the head from its probe and reading the mean of all
tokens, at the three rates that the baseline of a search tries. Rows of *select* are 400. Scores are told on
further rows of the training pool. Trainings are kept in `results/trainings.jsonl`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.further_rows import backbone_in_bf16, encoded_with_further_rows, quick_plan
from lib.measuring import note
from lib.parts import asked_part
from lib.storage import append_row, read_rows

from autopeft import Recipe
from autopeft.recipe.pooling import pooled
from autopeft.search.selection.baselines import lora_rates
from autopeft.training import run_trial

__all__ = ["BUDGET", "PLACES", "recipe"]

RESULTS = Path(__file__).parent / "results" / "trainings.jsonl"
BUDGET, ROWS, STEPS, SPLIT, SEEDS = 2_304, 2_000, 60, 730, (0,)
TASKS = ("trec-fine", "trec", "subjectivity")
PLACES: Mapping[str, tuple[list[str], str, int]] = {
    "q, v, last layer": (["q", "v"], "last 1", 1),
    "q, upper half": (["q"], "last 3", 1),
    "v, upper half": (["v"], "last 3", 1),
    "k, upper half": (["k"], "last 3", 1),
    "o, upper half": (["o"], "last 3", 1),
    "q, last layer": (["q"], "last 1", 3),
    "v, last layer": (["v"], "last 1", 3),
    "o, last layer": (["o"], "last 1", 3),
    "up, last layer": (["up"], "last 1", 1),
    "down, last layer": (["down"], "last 1", 1),
    "q, upper third": (["q"], "last 2", 1),
    "v, upper third": (["v"], "last 2", 1),
}
"""By name: sites, layers and rank."""


def recipe(place: str, rate: float) -> Recipe:
    """LoRA of a place at a rate, beside a head that reads the mean of all tokens."""
    sites, at, rank = PLACES[place]
    training = {"learning_rate": rate, "groups": {"head": {"learning_rate": 1e-2}}}
    layers = [{"at": at, "attach": [{"lora": {"sites": sites, "rank": rank}}]}]
    told = {"autopeft": 2, "name": "lora", "layers": layers, "training": training}
    return pooled(Recipe.from_dict(told), "mean")


def cells() -> Iterator[tuple[int, str, str, float]]:
    """Seed, task, place and rate of every training, one seed after the other."""
    for seed in SEEDS:
        for task in TASKS:
            for place, (_, _, rank) in PLACES.items():
                for rate in lora_rates(rank, 3):
                    yield seed, task, place, rate


def measure(task: str, place: str, rate: float, seed: int) -> dict[str, float]:
    """Scores on *select* and on the further rows, and the loss on *select* that a search ranks by."""
    data = encoded_with_further_rows(task, ROWS, seed=SPLIT)
    plan, model = quick_plan(STEPS, seed), backbone_in_bf16(task)
    done = run_trial(model, recipe(place, rate), data, plan, splits=("select", "test"))
    loss = done.calibrated_losses["select"]
    return {"select": done.scores["select"], "further": done.scores["test"], "loss": loss}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """For each place and task the score on further rows, at the rate that *select* ranks highest by the mean
    over the seeds."""
    found: dict[tuple[str, str], dict[float, list[Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault((row["task"], row["place"]), {}).setdefault(row["rate"], []).append(row)
    lines = ["| place | " + " | ".join(TASKS) + " | mean |", "|---|" + "---|" * (len(TASKS) + 1)]
    for place in PLACES:
        told, scores = [], []
        for task in TASKS:
            rates = found.get((task, place), {})
            if not rates:
                told.append("–")
                continue
            rate = min(rates, key=lambda r, rates=rates: statistics.fmean(x["loss"] for x in rates[r]))
            scores.append(100 * statistics.fmean(x["further"] for x in rates[rate]))
            told.append(f"{scores[-1]:.1f} at {rate:g}")
        mean = f"{statistics.fmean(scores):.1f}" if scores else "–"
        lines.append(f"| {place} | {' | '.join(told)} | {mean} |")
    return "\n".join(lines)


def main() -> None:
    asked = asked_part(__doc__, "training")
    if asked is not None:
        for seed, task, place, rate in list(cells())[asked]:
            own = {"task": task, "place": place, "rate": rate, "seed": seed}
            if any(own.items() <= row.items() for row in read_rows(RESULTS)):
                continue
            append_row(RESULTS, own | measure(task, place, rate, seed))
            note(str(read_rows(RESULTS)[-1]))
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()

"""CPU seconds of a training step of every method, taken in turns with full fine-tuning.

    python experiments/single_methods/cost.py     # some 15 minutes on one core

Bench and recipes are those of `run.py`, on `trec`: 24 steps of 32, the same rows for all, three rounds in
which the order rotates. A step's cost is CPU time of the process from the end of the first step to the end of
the last, by their number; what a method computes before its first step (FISH mask's ranking, stored states of
layers below it) is not in it. Seconds belong to the machine, so `results/costs.json` keeps them by round, and
the table shows each method's share of the full fine-tuning of its round.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
from run import BATCH, HEAD, ROWS, Bench, candidates, centre_of, rate_of, recipe_of
from tables import COSTS

from autopeft.tasks import Rows

__all__ = ["costs"]

TASK, STEPS, ROUNDS = "trec", 24, 3


def costs(train: Callable[[str, int], float], names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """What `train(method, round)` says for every method in every round; each round starts further on."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number * len(names) // rounds
        for name in [*names[start:], *names[:start]]:
            found[name].append(train(name, number))
            print(f"round {number} {name:18} {found[name][-1]:.4f}", flush=True)
    return found


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    bench = Bench(TASK, Rows(train=ROWS, select=64, test=64))

    def train(name: str, seed: int) -> float:
        recipe = recipe_of(name, rate_of(centre_of(name)))
        row: dict[str, Any] = bench.train(name, recipe, seed, "select", STEPS)
        return float(row["cpu_seconds_per_step"])

    bench.train(HEAD, recipe_of(HEAD, 1e-3), 0, "select", ROWS // BATCH)  # stores the states of every row
    setting = {"task": TASK, "steps": STEPS, "torch": torch.__version__, "machine": platform.machine()}
    found = costs(train, [name for name in candidates() if "," not in name], ROUNDS)
    COSTS.write_text(json.dumps(setting | {"rounds": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Is the rate that one seed has chosen a good one? Best rates on *select* with the seeds of the test.

    python experiments/single_methods/stability.py prefix_tuning hiwi

For each method and task the best rate of the sweep and those half a decade and a decade below it, seeds 1, 2
and 3. *Test* is not looked at, and the table of `run.py` stays as it is. `results/trials.jsonl` keeps the
trainings.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from run import SEEDS, TASKS, TRIALS, Runner, candidates, rate_of

__all__ = ["line", "stability"]

STEPS_DOWN = (0, -1, -2)


def stability(runner: Runner, task: str, name: str) -> list[tuple[float, list[float]]]:
    """The rates, and the scores on *select* of every seed."""
    best = runner.best(task, name)
    return [
        (rate_of(point), [runner.score(task, name, point, seed, "select") for seed in SEEDS])
        for point in (best + step for step in STEPS_DOWN)
    ]


def line(task: str, name: str, found: Sequence[tuple[float, Sequence[float]]]) -> str:
    """In Markdown: mean and sd in per cent, and the worst seed."""
    cells = [
        f"{rate:.1e}: {100 * statistics.fmean(scores):.1f} ± {100 * statistics.stdev(scores):.1f}"
        f" (worst {100 * min(scores):.1f})"
        for rate, scores in found
    ]
    return "| " + " | ".join([name, task, *cells]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", choices=candidates())
    parser.add_argument("--task", action="append", choices=TASKS, help="only this one; may be given twice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runner = Runner(TRIALS)
    tasks = arguments.task or TASKS
    lines = [line(task, name, stability(runner, task, name)) for name in arguments.methods for task in tasks]
    print("| method | task | best of the sweep | half a decade below | a decade below |")
    print("|---" * 5 + "|", *lines, sep="\n")


if __name__ == "__main__":
    main()

"""Gates and supernets beside trials: the score of what is found against the CPU that finding it takes.

    python experiments/strategies/run.py --plan      # what is left, and what it will take
    python experiments/strategies/run.py             # goes on where it stopped
    python experiments/strategies/run.py --tables    # what there is

What is compared stands in `contenders.py`. What stands in `results/runs.jsonl` is not run again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from contenders import BUDGETS, CONTENDERS, DRAWS, TASKS, found
from lib.intervals import interval
from lib.measuring import commit, note
from lib.storage import append_row, read_rows
from scipy.stats import spearmanr

__all__ = [
    "RESULTS",
    "claims",
    "differences",
    "main",
    "missing",
    "order_over_draws",
    "rank_correlation",
    "table",
]

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
MINUTES = {
    "trials, quick": 4,
    "gates": 2.5,
    "supernet": 4,
    "random structures": 2.5,
    "portfolio's first": 3,
    "tuned LoRA": 2.5,
}
Row = Mapping[str, Any]


def missing(rows: Sequence[Row]) -> Iterator[tuple[int, str, str, str]]:
    """Draws, budgets, tasks and contenders that are not known, draw after draw."""
    known = {(row["draw"], row["budget"], row["task"], row["contender"]) for row in rows}
    return (cell for cell in product(DRAWS, BUDGETS, TASKS, CONTENDERS) if cell not in known)


def differences(rows: Sequence[Row], one: str, other: str, budget: str | None = None) -> list[float]:
    """For each task the mean over draws of one contender's score less another's, on *test*, in points."""
    means = {
        (r["budget"], r["task"], r["draw"], r["contender"]): 100 * statistics.fmean(r["test"]) for r in rows
    }
    found_by_task: list[float] = []
    for task in TASKS:
        cells = [
            means[b, task, draw, one] - means[b, task, draw, other]
            for b, draw in product(BUDGETS if budget is None else (budget,), DRAWS)
            if (b, task, draw, one) in means and (b, task, draw, other) in means
        ]
        if cells:
            found_by_task.append(statistics.fmean(cells))
    return found_by_task


def table(rows: Sequence[Row], budget: str) -> str:
    """Score of each contender by task, its mean less that of a quick search, and the CPU of the search."""
    rows = [row for row in rows if row["budget"] == budget]
    lines = [f"| {budget} | {' | '.join(TASKS)} | less `trials, quick` | CPU s of the search |"]
    lines.append("|---" * (len(TASKS) + 3) + "|")
    for name in CONTENDERS:
        own = [row for row in rows if row["contender"] == name]
        if not own:
            continue
        scores = []
        for task in TASKS:
            told = [100 * statistics.fmean(row["test"]) for row in own if row["task"] == task]
            scores.append(f"{statistics.fmean(told):.1f}" if told else "–")
        less = differences(rows, name, "trials, quick", budget)
        said = "–"
        if less and name != "trials, quick":
            mean, half = interval(less)
            said = f"{mean:+.2f} ± {half:.2f}"
        seconds = statistics.fmean(row["search_cpu"] for row in own)
        lines.append(f"| {name} | {' | '.join(scores)} | {said} | {seconds:.0f} |")
    return "\n".join(lines)


def claims(rows: Sequence[Row]) -> list[str]:
    """What the registered claims come to, a sentence each."""

    def cpu(name: str) -> float:
        return statistics.fmean(row["search_cpu"] for row in rows if row["contender"] == name)

    there = {row["contender"] for row in rows}
    told = []
    if {"gates", "trials, quick"} <= there:
        mean, half = interval(differences(rows, "gates", "trials, quick"))
        share = cpu("gates") / cpu("trials, quick")
        holds = "holds" if mean - half >= -0.5 and share <= 1 / 3 else "does not hold"
        told.append(
            f"Gates less `trials, quick`: {mean:+.2f} ± {half:.2f} points at {share:.2f} of its CPU: the "
            f"claim {holds}."
        )
    orders = {
        "gates": ("The order of blocks correlates by {:.2f} over draws", order_over_draws),
        "supernet": (
            "Ranks of members with shared weights and after their own training correlate by {:.2f}",
            rank_correlation,
        ),
    }
    for name, (words, order_in) in orders.items():
        if not {name, "random structures"} <= there:
            continue
        mean, half = interval(differences(rows, name, "random structures"))
        share, order = cpu(name) / cpu("random structures"), order_in(rows)
        said = "recommended" if mean + half >= 0.5 and order >= 0.3 else "not recommended"
        told.append(
            f"{name.capitalize()} less random structures: {mean:+.2f} ± {half:.2f} points at {share:.2f} "
            f"times their CPU. {words.format(order)}. By the stop rule the strategy {name} is {said}."
        )
    return told


def rank_correlation(rows: Sequence[Row]) -> float:
    """The mean over tasks and budgets of the rank correlation (Spearman) of members' estimates with what they
    are ranked by after trainings of their own."""
    found = [float(spearmanr(r["estimated"], r["trained"]).statistic) for r in rows if "estimated" in r]
    return statistics.fmean(found) if found else float("nan")


def order_over_draws(rows: Sequence[Row]) -> float:
    """The mean rank correlation (Spearman) of the probabilities of two draws of one task and budget."""
    last = {(r["budget"], r["task"], r["draw"]): r["probabilities"] for r in rows if "probabilities" in r}
    found_in_pairs = [
        float(spearmanr(last[b, task, one], last[b, task, other]).statistic)
        for b, task in product(BUDGETS, TASKS)
        for one, other in combinations(DRAWS, 2)
        if (b, task, one) in last and (b, task, other) in last
    ]
    return statistics.fmean(found_in_pairs) if found_in_pairs else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="say what is left, run nothing")
    parser.add_argument("--tables", action="store_true", help="print what there is, run nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    left = list(missing(read_rows(RESULTS)))
    hours = sum(MINUTES[contender] for *_, contender in left) / 60
    note(f"{len(left)} searches are left, some {hours:.0f} core-hours")
    for draw, budget, task, contender in [] if given.plan or given.tables else left:
        row = {"draw": draw, "budget": budget, "task": task, "contender": contender, "version": commit()}
        row |= found(contender, task, budget, draw)
        append_row(RESULTS, row)
        note(f"{draw} {budget} {task} {contender}: {row['test']}, {row['search_cpu']:.0f} s")
    rows = read_rows(RESULTS)
    if not given.plan and rows:
        print("\n\n".join([*(table(rows, budget) for budget in BUDGETS), *claims(rows)]))


if __name__ == "__main__":
    main()

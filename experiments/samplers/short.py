"""What do samplers propose in a search of twelve trials, after the portfolio?

    python experiments/samplers/short.py             # half an hour of one core; goes on where it stopped
    python experiments/samplers/short.py --tables

Real searches, without baselines and with one run of a finalist: twelve trials of 60 steps on MiniLM at 0.5 %,
the first six of which are the portfolio's and the search's own start. The others are the sampler's. Told is
what trials are ranked by, the calibrated loss on *select* (lower is better). *Test* has 50 rows that nothing
is made of. Results stand in `results/short.jsonl`; those of `evolution`, a sampler that went, too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from lib.measuring import note
from lib.searches import finished_search
from lib.storage import append_row, read_rows

from autopeft.runs.folder import load_run

__all__ = ["searches", "tables"]

HERE = Path(__file__).parent
RESULTS, FOLDERS = HERE / "results" / "short.jsonl", HERE / "runs"
TASKS, SEEDS, SAMPLERS = ("trec", "movie-sentences"), (7, 8), ("tpe",)
TRIALS, FIRST = 12, 6
"""Trials of a search, and those that every sampler has in common."""


def searches() -> Iterator[tuple[str, int, str]]:
    """Task, seed and sampler of each search."""
    for seed, task in product(SEEDS, TASKS):
        for sampler in SAMPLERS:
            yield task, seed, sampler


def run(task: str, seed: int, sampler: str) -> dict[str, Any]:
    """One search, or what is left of it."""
    folder = FOLDERS / f"short-{task}-{seed}-{sampler}"
    finished_search(
        folder, task=task, budget="0.5%", model="minilm", sampler=sampler, seed=seed, baselines="none",
        trials=TRIALS, steps=60, confirm_seeds=1, precision="bf16", final_precision="bf16",
        max_length=64, train_rows=2_000, select_rows=400, test_rows=50, stand_in=False, workers=0,
    )  # fmt: skip
    trials = sorted(load_run(folder).trials().records, key=lambda r: r.number or 0)
    told = [[r.recipe["name"], round(-r.rank, 4), r.scores["select"]] for r in trials if r.rank is not None]
    return {"task": task, "seed": seed, "sampler": sampler, "trials": told}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the samplers proposed, as Markdown."""
    lines = [
        "| task | seed | sampler | best of the first six | median proposal | best proposal | within 0.05 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        losses = [loss for _, loss, _ in row["trials"]]
        first, proposed = min(losses[:FIRST]), losses[FIRST:]
        near = sum(loss < first + 0.05 for loss in proposed)
        lines.append(
            f"| {row['task']} | {row['seed']} | {row['sampler']} | {first:.3f} | "
            f"{statistics.median(proposed):.3f} | {min(proposed):.3f} | {near} of {len(proposed)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, search nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {(row["task"], row["seed"], row["sampler"]) for row in read_rows(RESULTS)}
    for one in searches():
        if not given.tables and one not in known:
            append_row(RESULTS, run(*one))
            note(" ".join(map(str, one)))
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()

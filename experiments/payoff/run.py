"""Does a search pay? Winners against LoRA and others over many cells, with claims written down before.

    python experiments/payoff/run.py --dry-run        # what is left, and what it will take
    python experiments/payoff/run.py --part 0/2       # every second search; beside it --part 1/2
    python experiments/payoff/run.py --tables         # what there is, with results/payoff.svg

Cells, seeds and contenders stand in `cells.py`, how each contender is chosen in `contenders.py`, the model
behind the intervals in `analysis.py`. One search and all that is compared with it take some ten minutes of
one core. Searches go on where they were cut off (`runs/`, which is not kept), and a contender that stands in
`results/runs.jsonl` is not trained again. The runs are those of the confirmation; what the first round came
to stands in the same file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from cells import Cell, cells, wanted
from figure import figure
from lib.measuring import commit, note
from lib.parts import part_of
from lib.storage import append_row, read_rows, write_whole
from tables import tables

HERE = Path(__file__).parent
RESULTS, FOLDERS = HERE / "results" / "runs.jsonl", HERE / "runs"
_MINUTES = {"minilm": 1.0, "mpnet-base": 8.0}  # of one core, for each contender


def missing(
    rows: Sequence[Mapping[str, Any]], part: int = 0, parts: int = 1
) -> list[tuple[Cell, int, list[str]]]:
    """Of every `parts`-th search, from the `part`-th on, those that lack contenders, and which."""
    known = {(r["model"], r["task"], r["rows"], r["budget"], r["seed"], r["contender"]) for r in rows}
    found = []
    for cell, seed in [*cells()][part::parts]:
        left = [c for c in wanted() if (*asdict(cell).values(), seed, c) not in known]
        if left:
            found.append((cell, seed, left))
    return found


def run(left: Sequence[tuple[Cell, int, list[str]]]) -> None:
    """Train what is missing; each contender is written before the next begins."""
    from contenders import Runs

    for cell, seed, contenders in left:
        runs = Runs(cell, seed, FOLDERS / f"{str(cell).replace('/', '-').replace('%', '')}-{seed}")
        for contender in contenders:
            begun = time.process_time()
            found = runs.run(contender)
            row = {**asdict(cell), "seed": seed, "contender": contender, "version": commit()}
            # A contender that the budget has none of is a line too, so that it is not looked for again.
            row |= {"test": {}} if found is None else found.to_dict()
            row["cpu_seconds"] = round(time.process_time() - begun, 1)
            append_row(RESULTS, row)
            scores = [f"{100 * score:.1f}" for score in row["test"].values()]
            note(f"{cell} {seed} {contender:22} {' '.join(scores)} ({row['cpu_seconds']:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th search, from the K-th on")
    parser.add_argument("--dry-run", action="store_true", help="what is left, and what it will take")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    left = missing(read_rows(RESULTS), *part_of(given.part))
    hours = sum(_MINUTES[cell.model] * len(found) for cell, _, found in left) / 60
    note(f"{len(left)} searches are left, some {hours:.1f} hours of one core")
    if not (given.dry_run or given.tables):
        run(left)
    rows = read_rows(RESULTS)
    if rows and not given.tables:
        write_whole(RESULTS.with_name("payoff.svg"), figure(rows))
    print(tables(rows))


if __name__ == "__main__":
    main()

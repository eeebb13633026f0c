"""Do hybrids of other tasks help a task with few rows? Starts, merges and fusions against fresh LoRA.

    python experiments/banks/run.py --dry-run        # what is left, and what it will take
    python experiments/banks/run.py --part 0/2       # every second job; beside it --part 1/2
    python experiments/banks/run.py --tables         # what there is

Sources, targets and contenders stand in `cells.py`, how each is chosen in `contenders.py`, how differences
become tables in `tables.py`. The bank is made first (`runs/`, which is not kept), and waits for the other
parts. A contender that stands in `results/runs.jsonl` is not trained again.
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

from cells import KINDS, SOURCES, Cell, all_of, cells, cluster_name, contenders, named
from lib.measuring import commit, note
from lib.parts import part_of
from lib.storage import append_row, read_rows
from tables import tables

HERE = Path(__file__).parent
RESULTS, WORK = HERE / "results" / "runs.jsonl", HERE / "runs"
_MINUTES = {"AdapterFusion": 1.4, "MerA": 0.7, "LoRAHub": 0.8}  # of one core, for a contender; others 0.6


def missing(rows: Sequence[Mapping[str, Any]], part: int = 0, parts: int = 1) -> list[tuple[Cell, str]]:
    """Of every `parts`-th cell, from the `part`-th on, the contenders that are not known."""
    known = {(r["task"], r["rows"], r["draw"], r["contender"]) for r in rows}
    return [
        (cell, contender)
        for cell in [*cells()][part::parts]
        for contender in contenders(cell.rows)
        if (*asdict(cell).values(), contender) not in known
    ]


def run(left: Sequence[tuple[Cell, str]], part: int, parts: int) -> None:
    """Make the bank, then train what is missing; each contender is written before the next begins."""
    from contenders import in_folder, make_bank, trained

    with in_folder(WORK):
        make_bank(slice(part, None, parts))
        wanted = [named(s, k) for s in SOURCES for k in KINDS]
        wanted += [all_of(cluster) for cluster in {cluster_name(source) for source in SOURCES}]
        while not all(Path("bank", name, "record.json").exists() for name in wanted):
            time.sleep(5)  # another part is at it
        for cell, contender in left:
            begun = time.process_time()
            row = {**asdict(cell), "contender": contender, "version": commit(), **trained(cell, contender)}
            row["cpu_seconds"] = round(time.process_time() - begun, 1)
            append_row(RESULTS, row)
            scores = " ".join(f"{100 * score:.1f}" for score in row["test"])
            note(f"{cell} {contender:20} {scores} ({row['cpu_seconds']:.0f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="0/1", metavar="K/N", help="every N-th cell, from the K-th on")
    parser.add_argument("--dry-run", action="store_true", help="what is left, and what it will take")
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    part, parts = part_of(given.part)
    left = missing(read_rows(RESULTS), part, parts)
    hours = sum(_MINUTES.get(contender, 0.6) for _, contender in left) / 60
    note(f"{len(left)} contenders are left, some {hours:.1f} hours of one core, and an hour for the bank")
    if not (given.dry_run or given.tables):
        run(left, part, parts)
    print(tables(read_rows(RESULTS)))


if __name__ == "__main__":
    main()

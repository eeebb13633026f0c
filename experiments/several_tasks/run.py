"""One hybrid for several tasks, or a LoRA for each? Systems of several tasks, tuned alike.

    python experiments/several_tasks/run.py             # goes on where it stopped; some hours of one core
    python experiments/several_tasks/run.py --tables    # what there is

What is compared stands in `contenders.py`. A contender that stands in `results/runs.jsonl` is not trained
again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from contenders import OWN, PARTS, trained
from lib.intervals import mean_of
from lib.measuring import commit, note
from lib.storage import append_row, read_rows

__all__ = ["DRAWS", "main", "missing", "table"]

RESULTS = Path(__file__).parent / "results" / "runs.jsonl"
DRAWS = (900, 901, 902)


def missing(rows: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> list[tuple[str, int, str]]:
    """Parts, draws and contenders that are not known, draw after draw."""
    known = {(row["part"], row["draw"], row["contender"]) for row in rows}
    return [
        (part, draw, name)
        for part in parts
        for draw in DRAWS
        for name in PARTS[part].contenders
        if (part, draw, name) not in known
    ]


def table(part: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Scores of each contender by task, in points, and the mean less a LoRA for each task."""
    rows = [row for row in rows if row["part"] == part]
    tasks = list(rows[0]["test"]) if rows else []
    scores = {(r["draw"], r["contender"]): {t: 100 * v for t, v in r["test"].items()} for r in rows}
    means = {key: statistics.fmean(found.values()) for key, found in scores.items()}
    lines = [
        f"| | {' | '.join(tasks)} | mean | less `{OWN}` | deployed | of these a task | CPU min |",
        "|---" * (len(tasks) + 6) + "|",
    ]
    for name in PARTS[part].contenders:
        own = [row for row in rows if row["contender"] == name]
        if not own:
            continue
        by_task = [f"{statistics.fmean(scores[r['draw'], name][task] for r in own):.1f}" for task in tasks]
        less = [means[r["draw"], name] - means[r["draw"], OWN] for r in own if (r["draw"], OWN) in means]
        deployed = statistics.fmean(row["deployed"] for row in own)
        mean = statistics.fmean(means[r["draw"], name] for r in own)
        told = mean_of(less) if less and name != OWN else "–"
        lines.append(
            f"| {name} | {' | '.join(by_task)} | {mean:.1f} | {told} | {deployed:,.0f} | "
            f"{deployed / len(tasks):,.0f} | {statistics.fmean(r['cpu_seconds'] for r in own) / 60:.0f} |"
        )
    wanted = len(DRAWS) * len(PARTS[part].contenders)
    return "\n".join([*lines, "", f"{part}: {len(rows)} of {wanted} contenders have run."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print what there is, train nothing")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all of them")
    given = parser.parse_args()
    parts = given.part or list(PARTS)
    torch.set_num_threads(1)
    left = [] if given.tables else missing(read_rows(RESULTS), parts)
    note(f"{len(left)} contenders are left, some ten minutes of one core each")
    with tempfile.TemporaryDirectory() as folder:
        for part, draw, contender in left:
            begun = time.process_time()
            row = {"part": part, "draw": draw, "contender": contender, "version": commit()}
            row |= trained(part, contender, draw, Path(folder))
            row["cpu_seconds"] = round(time.process_time() - begun, 1)
            append_row(RESULTS, row)
            note(
                f"{part} {draw} {contender}: {statistics.fmean(row['test'].values()):.3f} "
                f"({row['cpu_seconds']:.0f} s)"
            )
    for part in parts:
        print(table(part, read_rows(RESULTS)), end="\n\n")


if __name__ == "__main__":
    main()

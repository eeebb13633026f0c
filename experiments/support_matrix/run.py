"""Which method works on which family of models, for which kind of task: tried on tiny models.

    python experiments/support_matrix/run.py                     # goes on where it stopped; writes results/
    python experiments/support_matrix/run.py --fresh             # leaves aside what was found before
    python experiments/support_matrix/run.py --families qwen3    # these families anew, the others as they are
    python experiments/support_matrix/run.py --methods lora      # the same of methods
    python experiments/support_matrix/run.py --part 0/2          # every second cell; a run without it ends
    python experiments/support_matrix/run.py --tables            # counts of what was recorded

It ends with 1 where a method neither works nor is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `lib`

from cells import FAMILIES, Cell, cells, places, refusal, stamp, verdict
from lib.parts import part_of
from lib.storage import Balance, write_whole
from rich.progress import track

from autopeft.method import method_names

__all__ = ["main", "matrix", "recorded", "run", "told"]

RESULTS = Path(__file__).parent / "results"
Matrix = dict[str, Any]
"""`stamp`; `reasons`, sentences; `refused`, by place the number of the sentence by which its kind of task
refuses the family; `cells`, by place and method the number of a sentence, or `null` where it works; `broken`,
by place and method what went wrong."""


def recorded() -> Matrix:
    """The matrix of the last run that came to its end."""
    found: Matrix = json.loads((RESULTS / "matrix.json").read_text(encoding="utf-8"))
    return found


def run(
    *,
    fresh: bool = False,
    families: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    part: tuple[int, int] = (0, 1),
) -> Matrix | None:
    """Try every cell, from where an interrupted run stopped, and write the matrix.

    Args:
        fresh: leave aside what an interrupted run has found.
        families, methods: try those of these families and methods, and take the others as they were recorded.
        part: (k, n): every n-th cell alone, from the k-th on, beside other processes. Without the others'
            cells there is no matrix, and `None` is returned.
    """
    balance = Balance(RESULTS / "unfinished.jsonl", fresh=fresh)
    wanted, known = cells(), _recorded_of_others(families, methods) if families or methods else {}
    for cell in track(wanted[part[0] :: part[1]], "cells"):
        if (key := _key(cell)) not in balance and key not in known:
            outcome, reason = verdict(cell)
            balance.add(key, {"outcome": outcome, "reason": reason})
    if part[1] > 1:
        return None
    found = matrix({cell: known.get(_key(cell)) or balance[_key(cell)] for cell in wanted})
    write_whole(RESULTS / "matrix.json", json.dumps(found, indent=0) + "\n")
    balance.path.unlink(missing_ok=True)
    return found


def _recorded_of_others(families: tuple[str, ...], methods: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Verdicts of the recorded matrix by key, but those of these families and methods."""
    found, known = recorded(), {}
    for place, tried in found["cells"].items():
        for method, number in tried.items():
            anew = place.split()[0] in families or method in methods
            if not anew and method not in found["broken"].get(place, {}):
                told = ("works", "") if number is None else ("refused", found["reasons"][number])
                known[f"{place} {method}"] = dict(zip(("outcome", "reason"), told, strict=True))
    return known


def _key(cell: Cell) -> str:
    return f"{cell.place} {cell.method}"


def matrix(verdicts: dict[Cell, dict[str, Any]]) -> Matrix:
    """Verdicts in the form in which they are kept."""
    numbers: dict[str, int] = {}
    made: Matrix = {"stamp": stamp(), "reasons": [], "refused": {}, "cells": {}, "broken": {}}
    for place in places():
        if (why := refusal(place)) is not None:
            made["refused"][str(place)] = numbers.setdefault(why, len(numbers))
    for cell, row in verdicts.items():
        works = row["outcome"] == "works"
        own = made["cells"].setdefault(str(cell.place), {})
        own[cell.method] = None if works else numbers.setdefault(row["reason"], len(numbers))
        if row["outcome"] == "broken":
            made["broken"].setdefault(str(cell.place), {})[cell.method] = row["reason"]
    made["reasons"] = list(numbers)
    return made


def told(found: Matrix) -> str:
    """Markdown: for each kind of task, how many families it takes and what comes of the methods there."""
    lines = ["| kind of task | families | methods tried | work | refused |", "|---|---|---|---|---|"]
    for kind in sorted({place.kind for place in places()}):
        own = [methods for place, methods in found["cells"].items() if place.split()[1] == kind]
        counts = Counter(number is None for methods in own for number in methods.values())
        row = (kind, len(own), counts.total(), counts[True], counts[False])
        lines.append("| " + " | ".join(f"{v:,}" if isinstance(v, int) else v for v in row) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", action="store_true", help="print counts of what was recorded")
    parser.add_argument("--fresh", action="store_true", help="try all anew")
    parser.add_argument("--part", default="0/1", help="K/N: the K-th of N processes that share the work")
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES), default=(), help="try these anew")
    parser.add_argument("--methods", nargs="+", choices=method_names(), default=(), help="try these anew")
    options = parser.parse_args()
    if options.tables:
        print(told(recorded()), end="")
        return
    torch.set_num_threads(1)
    found = run(
        fresh=options.fresh,
        families=tuple(options.families),
        methods=tuple(options.methods),
        part=part_of(options.part),
    )
    if found is None:
        return
    print(told(found), end="")
    for place, methods in found["broken"].items():
        for method, reason in methods.items():
            print(f"{place} {method}: {reason}")
    sys.exit(bool(found["broken"]))


if __name__ == "__main__":
    main()

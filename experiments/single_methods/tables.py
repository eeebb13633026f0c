"""The table of single methods, in Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["COSTS", "FORMER", "FULL", "measured", "tables"]

COSTS = Path(__file__).parent / "results" / "costs.json"
FORMER_COSTS = COSTS.with_name("costs-format-1.json")
FULL = "full fine-tuning"
FORMER = ", format 1"  # after the name of a method whose defaults were others then
Row = Mapping[str, Any]
Costs = Mapping[str, Sequence[tuple[float, float]]]


def measured(path: Path = COSTS, former: Path = FORMER_COSTS) -> Costs:
    """CPU seconds of a step of each method and of full fine-tuning in each round; empty where nothing was
    measured."""
    found: dict[str, list[tuple[float, float]]] = {}
    for file, suffix in ((former, FORMER), (path, "")):
        rounds = json.loads(file.read_text(encoding="utf-8"))["rounds"] if file.exists() else {}
        for name, own in rounds.items():
            found[name + suffix] = list(zip(own, rounds[FULL], strict=True))
    return found


def tables(rows: Sequence[Row], tasks: Sequence[str], costs: Costs) -> str:
    """One line for each method, by its mean over the tasks: scores on *test*, rates, counts and cost.

    A method that has not been tested on every task is left out. Of counts that depend on the data the largest
    is shown. The cost is in CPU seconds (median) and in full fine-tunings of the same round.
    """
    heads = [f"{task}: test, mean ± sd | rate" for task in tasks]
    lines = [
        "| " + " | ".join(["method", *heads, "deployed", "trained", "CPU s a step (of full)"]) + " |",
        "|---" * (1 + 2 * len(tasks) + 3) + "|",
    ]
    found = [_line(rows, name, tasks, costs) for name in dict.fromkeys(row["method"] for row in rows)]
    return "\n".join(lines + [line for _, line in sorted(filter(None, found), reverse=True)])


def _line(rows: Sequence[Row], name: str, tasks: Sequence[str], costs: Costs) -> tuple[float, str] | None:
    tested = {
        task: [r for r in rows if (r["method"], r["task"], r["split"]) == (name, task, "test")]
        for task in tasks
    }
    if any(len(found) < 2 for found in tested.values()):
        return None
    cells = [name]
    for found in tested.values():
        cells += [_score(found), f"{found[0]['rate']:.1e}"]
    every = [row for found in tested.values() for row in found]
    cells += [f"{max(row.get(key, 0) for row in every):,}" for key in ("deployed", "trained")]
    cells.append(_cost(costs, name))
    mean = statistics.fmean(statistics.fmean(row["score"] for row in found) for found in tested.values())
    return mean, "| " + " | ".join(cells) + " |"


def _cost(costs: Costs, name: str) -> str:
    method = name.partition(",")[0]  # a variant's step is its method's
    rounds = costs.get(method + FORMER * name.endswith(FORMER)) or costs.get(method)
    if rounds is None:
        return "not measured"
    share = statistics.median(own / full for own, full in rounds)
    return f"{statistics.median(own for own, _ in rounds):.3f} ({share:.2f})"


def _score(found: Sequence[Row]) -> str:
    """Mean and standard deviation in per cent, or the error that ended a training."""
    failed = [row["error"] for row in found if "error" in row]
    scores = [100 * row["score"] for row in found]
    return failed[0] if failed else f"{statistics.fmean(scores):.1f} ± {statistics.stdev(scores):.1f}"

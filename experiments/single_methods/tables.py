"""The table of single methods, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["tables"]


def tables(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> str:
    """For each task: the methods by their mean on *test*, the rate that *select* chose, counts and cost."""
    lines = []
    for task in tasks:
        lines += [
            f"| {task} | test, mean ± sd | learning rate | rates tried | deployed | trained | CPU s a step |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [line for _, line in sorted(_lines(rows, task), reverse=True)]
        lines.append("")
    return "\n".join(lines)


def _lines(rows: Sequence[Mapping[str, Any]], task: str) -> list[tuple[float, str]]:
    found = []
    own = [row for row in rows if row["task"] == task]
    for name in dict.fromkeys(row["method"] for row in own):
        tested = [r for r in own if r["method"] == name and r["split"] == "test"]
        tried = {r["rate"] for r in own if r["method"] == name and r["split"] == "select"}
        if len(tested) < 2:
            continue
        failed = [r for r in tested if "error" in r]
        scores = [r["score"] for r in tested]
        mean = statistics.fmean(scores)
        shown = (
            f"{100 * mean:.1f} ± {100 * statistics.stdev(scores):.1f}" if not failed else failed[0]["error"]
        )
        counts = [f"{max(r.get(k, 0) for r in tested):,}" for k in ("deployed", "trained")]
        cost = statistics.fmean(r.get("cpu_seconds_per_step", 0.0) for r in tested)
        cells = [shown, f"{tested[0]['rate']:.1e}", str(len(tried)), *counts, f"{cost:.3f}"]
        found.append((mean, f"| {name} | " + " | ".join(cells) + " |"))
    return found

"""What the runs say: differences by cluster, with their intervals, and claims."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cells import CONTENDERS, ROWS, cluster_name
from lib.intervals import interval

__all__ = ["differences", "tables"]

_FRESH = "fresh LoRA"


def differences(rows: Sequence[Mapping[str, Any]], one: str, other: str, n: int) -> dict[str, float]:
    """`one` less `other` on *test*, in points, the mean over the draws of each cluster, of cells with `n`
    rows that both have."""
    scores = {
        (r["task"], r["draw"], r["contender"]): 100 * statistics.fmean(r["test"])
        for r in rows
        if r["rows"] == n
    }
    clusters: dict[str, list[float]] = {}
    for (task, draw, contender), score in scores.items():
        if contender == one and (task, draw, other) in scores:
            clusters.setdefault(cluster_name(task), []).append(score - scores[task, draw, other])
    return {cluster: statistics.fmean(values) for cluster, values in clusters.items()}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each contender less a fresh LoRA by the number of rows, and the clusters with fewest rows."""
    numbers = sorted(ROWS)
    lines = [
        f"| contender less {_FRESH} | "
        + " | ".join(f"{n} rows" for n in numbers)
        + " | by cluster, 50 rows |",
        "|---|" + "---|" * (len(numbers) + 1),
    ]
    for contender in CONTENDERS:
        if contender == _FRESH:
            continue
        told = []
        for n in numbers:
            found = list(differences(rows, contender, _FRESH, n).values())
            mean, half = interval(found) if found else (0.0, 0.0)
            told.append(f"{mean:+.2f} ± {half:.2f}" if found else "–")
        clusters = differences(rows, contender, _FRESH, numbers[0])
        told.append(", ".join(f"{name} {value:+.1f}" for name, value in clusters.items()) or "–")
        lines.append(f"| {contender} | {' | '.join(told)} |")
    cells = {(r["task"], r["rows"], r["draw"]) for r in rows}
    return "\n".join([*lines, "", f"{len(cells)} cells of 60 have runs."])

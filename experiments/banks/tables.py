"""What the runs say: differences by cluster, with their intervals, and claims."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cells import CONTENDERS, ROWS, cluster_name
from lib.intervals import interval

__all__ = ["differences", "tables"]

_FRESH = "fresh LoRA"
_CLAIMED = (
    ("1", "best start, LoRA", _FRESH, 50),
    ("2", "best start, LoRA", _FRESH, 500),
    ("3", "AdapterFusion", "best start, adapter", 50),
    ("4", "MerA", "fresh adapter", 50),
    ("5", "AdapterSoup", "head alone", 50),
    ("5", "LoRAHub", "head alone", 50),
    ("6", "one trained on all", "best start, adapter", 50),
    ("none", "frozen beside LoRA", "best start, LoRA", 50),
)
"""The claims of the README, and what it says beside them: two contenders and the number of rows."""


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


def _difference(rows: Sequence[Mapping[str, Any]], one: str, other: str, n: int) -> str:
    found = list(differences(rows, one, other, n).values())
    if not found:
        return "–"
    mean, half = interval(found)
    return f"{mean:+.2f} ± {half:.2f}"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each contender less a fresh LoRA by the number of rows, with the clusters of fewest rows, and the
    differences that claims are about."""
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
        told = [_difference(rows, contender, _FRESH, n) for n in numbers]
        clusters = differences(rows, contender, _FRESH, numbers[0])
        told.append(", ".join(f"{name} {value:+.1f}" for name, value in clusters.items()) or "–")
        lines.append(f"| {contender} | {' | '.join(told)} |")
    lines += ["", "| claim | difference | rows | points |", "|---|---|---|---|"]
    for claim, one, other, n in _CLAIMED:
        lines.append(f"| {claim} | {one} less {other} | {n} | {_difference(rows, one, other, n)} |")
    cells = {(r["task"], r["rows"], r["draw"]) for r in rows}
    return "\n".join([*lines, "", f"{len(cells)} cells of 60 have runs."])

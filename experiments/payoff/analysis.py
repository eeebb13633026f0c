"""Differences between contenders, averaged over cells, with what their uncertainty comes from.

Every search of a cell has splits of its own. A difference is that of two means over fresh seeds on the same
test rows. Cells of one cluster of tasks and one seed share texts, so they are averaged first: D(k, s) for
cluster k and seed s. Cells that were searched with different seeds are groups of their own, k. The estimate
weighs clusters by their number of cells,

    mean = Σ_k w_k · mean_s D(k, s),    variance = Σ_k w_k² · var_s D(k, s) / n_k,

with Satterthwaite's degrees of freedom. With two searches a cell a cluster's own variance has one of these;
the second confirmation then has one variance for all clusters. The interval speaks of these cells, not of
tasks at large: for those the spread of the clusters' means is printed beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cells import CLUSTERS
from lib.intervals import stratified

__all__ = ["Estimate", "differences", "estimate"]

Row = Mapping[str, Any]
_OWN = 3  # searches a cell from which a cluster has a variance of its own


@dataclass(frozen=True)
class Estimate:
    """A mean difference in points, its interval, and how many cells and searches it comes from."""

    mean: float
    half: float
    lower: float
    cells: int
    searches: int
    clusters: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def differences(
    rows: Sequence[Row], one: str, other: str, where: Callable[[Row], bool] = lambda row: True
) -> dict[tuple[str, int], float]:
    """By cell and seed of the search: test score of a contender less that of another, in points."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if where(row) and row["test"]:
            key = (f"{row['model']}/{row['task']}/{row['rows']}/{row['budget']}", row["seed"])
            found.setdefault(key, {})[row["contender"]] = 100 * statistics.fmean(row["test"].values())
    return {key: told[one] - told[other] for key, told in found.items() if one in told and other in told}


def estimate(
    found: Mapping[tuple[str, int], float], level: float = 0.95, *, pooled: bool = False
) -> Estimate | None:
    """The mean over cells; `None` where a cluster has fewer than two searches.

    Cells of a cluster that were searched with different seeds are groups of their own: averaged with the
    others, those with more searches would count for more, and what differs from cell to cell would pass for
    noise between searches.

    Args:
        found: see `differences`.
        level: of the two-sided interval; `lower` is its lower end.
        pooled: whether clusters with two searches a cell have one variance.
    """
    searched: dict[str, dict[int, float]] = {}
    for (cell, seed), value in found.items():
        searched.setdefault(cell, {})[seed] = value
    groups: dict[tuple[str, frozenset[int]], list[dict[int, float]]] = {}
    for cell, own in searched.items():
        groups.setdefault((CLUSTERS[cell.split("/")[1]], frozenset(own)), []).append(own)
    if not groups or any(len(seeds) < 2 for _, seeds in groups):
        return None
    values = [
        [statistics.fmean(own[seed] for own in alike) for seed in sorted(seeds)]
        for (_, seeds), alike in groups.items()
    ]
    together = pooled and min(map(len, values)) < _OWN
    mean, half = stratified(values, [len(alike) for alike in groups.values()], level, pooled=together)
    clusters: dict[str, list[float]] = {}
    for cell, own in searched.items():
        clusters.setdefault(CLUSTERS[cell.split("/")[1]], []).append(statistics.fmean(own.values()))
    means = {name: statistics.fmean(own) for name, own in clusters.items()}
    return Estimate(mean, half, mean - half, len(searched), len(found), means)

"""Criteria by which a recipe may be ranked, and what choosing by each of them comes to."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

__all__ = ["CRITERIA", "criteria", "regrets", "tables"]

CRITERIA = ("accuracy", "loss", "calibrated_loss", "brier")
"""The share of right answers, cross-entropy, cross-entropy at the temperature that suits these rows best, and
the Brier score. The last three are better where they are small."""

_TEMPERATURES = (-3.0, 3.0)  # natural logarithms


def criteria(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """All criteria of logits (rows, classes) and class indices (rows,)."""
    logits, at = np.asarray(logits, dtype=np.float64), np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[at, labels].mean())

    share = np.exp(log_softmax(logits, axis=1))
    truth = np.zeros_like(share)
    truth[at, labels] = 1
    best = minimize_scalar(loss, bounds=_TEMPERATURES, method="bounded")
    return {
        "accuracy": round(float((logits.argmax(axis=1) == labels).mean()), 6),
        "loss": round(loss(0.0), 6),
        "calibrated_loss": round(float(best.fun), 6),
        "brier": round(float(((share - truth) ** 2).sum(axis=1).mean()), 6),
    }


def _merit(row: Mapping[str, Any], criterion: str) -> float:
    value: float = row["select"][criterion]
    return value if criterion == "accuracy" else -value


def regrets(
    rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Collection[str]]
) -> dict[str, list[float]]:
    """By criterion, for each cell and ranking seed: accuracy on further rows, in points, of the recipe chosen
    by one seed of *select* with the other seed, less that of the best recipe in the mean.

    Args:
        wanted: by budget the recipes that are compared; cells that lack a training of one take no part.
    """
    found: dict[str, list[float]] = {name: [] for name in CRITERIA}
    groups: dict[Any, dict[int, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        cell = (row["task"], row["rows"], row["budget"])
        groups.setdefault(cell, {}).setdefault(row["seed"], {})[row["hash"]] = row
    for (_, _, budget), seeds in groups.items():
        one, other = seeds.get(0, {}), seeds.get(1, {})
        both = set(wanted[budget])
        if not both <= one.keys() & other.keys():
            continue
        mean = {k: statistics.fmean(s[k]["further"]["accuracy"] for s in (one, other)) for k in both}
        for ranked, told in ((one, other), (other, one)):
            for criterion in CRITERIA:
                chosen = max(both, key=lambda k: _merit(ranked[k], criterion))
                found[criterion].append(100 * (told[chosen]["further"]["accuracy"] - max(mean.values())))
    return found


def tables(rows: Sequence[Mapping[str, Any]], wanted: Mapping[str, Collection[str]]) -> str:
    """What there is of whole cells, as Markdown; `wanted` as in `regrets`."""
    lines = [
        "| rows | budget | cells | " + " | ".join(CRITERIA) + " |",
        "|---|---|---|" + "---|" * len(CRITERIA),
    ]
    for size, budget in dict.fromkeys((row["rows"], row["budget"]) for row in rows):
        found = regrets([row for row in rows if (row["rows"], row["budget"]) == (size, budget)], wanted)
        if not found["loss"]:
            continue
        told = [f"{statistics.fmean(v):+.2f}" for v in found.values()]
        lines.append(f"| {size} | {budget} | {len(found['loss']) // 2} | {' | '.join(told)} |")
    return "\n".join(lines)

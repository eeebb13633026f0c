"""How far a look at a task sharpens what the portfolio says of it: only as far as the evidence shows.

Two things are known of a task before anything is trained: its features, and how much the first step of each
recipe would lower its loss. Either is used where it would have helped on the recorded tasks, each judged with
its own cluster left out, and a t-test over clusters (one-sided, 2.5 %) says that this is no chance.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from autopeft.search.portfolio.estimates import Target, clipped, estimates
from autopeft.search.portfolio.evidence import Evidence, Features, Key

__all__ = ["Finding", "likeness", "shifts", "slope_of_first_steps", "worth_of_likeness"]

_SURE = 0.975
# Clusters. What is told of each comes from the others too: of three, the test found slopes by chance, since
# one training that had collapsed was in all of them.
_FEWEST = 4
# Of the logarithms of classes and tokens, and of the head's share: where recorded tasks hardly differ,
# another one is not infinitely far from all of them.
_LEAST_SPREAD = np.array([0.5, 0.25, 0.1])
_LEAST = 1e-3  # of a likeness: what is far counts for little, and not for nothing


@dataclass(frozen=True)
class Finding:
    """What the recorded tasks say of a way to sharpen.

    Attributes:
        by_cluster: the quantity, positive where it helps, for each cluster.
        mean: of them.
        helps: whether a t-test over the clusters finds the mean above zero.
    """

    by_cluster: Mapping[str, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.by_cluster.values()) if self.by_cluster else 0.0

    @property
    def helps(self) -> bool:
        found = list(self.by_cluster.values())
        if len(found) < _FEWEST:
            return False
        error = statistics.stdev(found) / math.sqrt(len(found))
        return self.mean > float(stdtrit(len(found) - 1, _SURE)) * error


# Features
# ---------------------------------------------------------------------------------------------------------


def likeness(evidence: Evidence, features: Features) -> dict[str, float]:
    """What trainings on each recorded task count for, given the features of another one: exp(-d²/2), with d²
    the mean square of the differences in standard deviations of the recorded tasks, and at least 0.001."""
    known = _of_tasks(evidence)
    places = {task: _place(f) for task, f in known.items()}
    if len(places) < 2:
        return {}
    spread = np.maximum(np.std(np.array(list(places.values())), axis=0), _LEAST_SPREAD)
    own = _place(features)
    far = {task: float((((place - own) / spread) ** 2).mean()) for task, place in places.items()}
    return {task: max(_LEAST, math.exp(-square / 2)) for task, square in far.items()}


def _of_tasks(evidence: Evidence) -> dict[str, Features]:
    """Features of each task, of its most rows."""
    found: dict[str, Features] = {}
    for setting, features in sorted(evidence.features.items(), key=lambda item: item[0].rows):
        found[setting.task] = features
    return found


def _place(features: Features) -> np.ndarray:
    return np.array([math.log(features.classes), math.log(max(1.0, features.tokens)), features.head])


def worth_of_likeness(evidence: Evidence, target: Target, *, leave_out: Collection[str] = ()) -> Finding:
    """By how much likeness lowers the root of the mean squared error of what is expected, in points: for each
    cluster, of estimates from the others."""
    kept = evidence.without(leave_out)
    features, worth = _of_tasks(kept), dict[str, float]()
    for cluster in kept.clusters:
        errors: list[tuple[float, float]] = []
        tasks = {o.setting.task for o in kept.observations if o.cluster == cluster} & set(features)
        plain = estimates(kept, target, leave_out=(cluster,))
        for task in tasks:
            like = likeness(kept.without((cluster,)), features[task])
            weighted = estimates(kept, target, leave_out=(cluster,), likeness=like)
            actual = _gains(kept, task)
            errors += [
                (plain[k].gain - g, weighted[k].gain - g)
                for k, g in actual.items()
                if k in plain and k in weighted
            ]
        if errors:
            before, after = (math.sqrt(statistics.fmean(e[i] ** 2 for e in errors)) for i in (0, 1))
            worth[cluster] = before - after
    return Finding(worth)


def _gains(evidence: Evidence, task: str) -> dict[Key, float]:
    """Mean gain of each recipe on a task."""
    found: dict[Key, list[float]] = defaultdict(list)
    for o in evidence.observations:
        if o.setting.task == task:
            found[o.key].append(clipped(o.gain))
    return {key: statistics.fmean(gains) for key, gains in found.items()}


# First steps
# ---------------------------------------------------------------------------------------------------------


def slope_of_first_steps(evidence: Evidence, *, leave_out: Collection[str] = ()) -> Finding:
    """How many points more a recipe gains on a task on which its first step is e times as large as usual, for
    each cluster: the regression of gains on first steps (logarithms, over LoRA's), both less the recipe's
    means over the other clusters under the same budget with as many rows."""
    groups: dict[tuple[Key, float, int], dict[str, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for o in evidence.observations:
        if o.cluster not in leave_out and o.first_step is not None:
            groups[o.key, o.share, o.setting.rows][o.cluster].append((o.first_step, clipped(o.gain)))
    products: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for clusters in groups.values():
        means = {c: np.mean(np.array(pairs), axis=0) for c, pairs in clusters.items()}
        for cluster, pairs in clusters.items():
            others = [m for c, m in means.items() if c != cluster]
            if others:
                step, gain = np.mean(np.array(others), axis=0)
                products[cluster] += [(x - step, y - gain) for x, y in pairs]
    return Finding({c: _slope(pairs) for c, pairs in products.items() if len(pairs) > 1})


def shifts(
    evidence: Evidence,
    slope: Finding,
    first_steps: Mapping[Key, float],
    reference: Key,
    *,
    leave_out: Collection[str] = (),
) -> dict[Key, float]:
    """By how many points a task's first steps move what is expected of each recipe.

    Args:
        first_steps: how much each recipe's first step lowers the loss of the task's rows.
    """
    usual: dict[Key, list[float]] = defaultdict(list)
    for o in evidence.observations:
        if o.cluster not in leave_out and o.first_step is not None:
            usual[o.key].append(o.first_step)
    base = first_steps.get(reference, 0.0)
    return {
        key: slope.mean * (math.log(step / base) - statistics.fmean(usual[key]))
        for key, step in first_steps.items()
        if key != reference and step > 0 and base > 0 and usual.get(key)
    }


def _slope(pairs: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(pairs).T
    return float(x @ y / max(float(x @ x), 1e-12))

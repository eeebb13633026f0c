"""What the evidence lets one expect of each recipe: a random-effects meta-analysis over clusters of tasks.

For each recipe the unit is a cluster's mean gain over plain LoRA, since tasks that share texts are not
independent and seeds of one task even less. A cluster's mean has the variance τ² + σ²/n, where τ² is between
clusters, σ² between the trainings of a cluster, and n counts trainings, those that are far from the asked
budget and rows for less than one. The mean over clusters has the interval of Hartung and Knapp (Statistics in
Medicine 20, 2001), with Student's t for clusters - 1 degrees of freedom and never narrower than that of the
model's own variances (Röver, Knapp and Friede, BMC Medical Research Methodology 15, 2015): it keeps its level
with few clusters, where normal quantiles do not (IntHout, Ioannidis and Borm, ibid. 14, 2014). τ² and σ² are
medians over all recipes, since one recipe has too few clusters to tell its own. Gains are winsorised (Dixon,
Annals of Mathematical Statistics 31, 1960): a training that collapsed says that it did, and the thirty points
that this cost it would else be most of every variance.

Then all means are drawn towards zero (empirical Bayes): the best of many noisy means is too high, and one
that is drawn by its own uncertainty is not (Efron, Journal of the American Statistical Association 106,
2011). The prior's width comes from the recipes that are better than LoRA, as those that are far worse say
nothing of how much better a recipe can be. For this and for the ranking, though not for the intervals, a
recipe's variance is moderated by that of all recipes (Smyth, Statistical Applications in Genetics and
Molecular Biology 3, 2004): from two or three clusters its own is little more than chance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from autopeft.search.portfolio.evidence import BackboneShare, Evidence, Key, Observation, Setting

__all__ = ["FAR", "MOST", "Estimate", "Target", "estimates", "nearness"]

_WIDTH = 1.0
"""Of the weights, in natural logarithms of the budget's share and of the rows: what is 2.7 times as large or
as many counts for 0.6 of a training, 10 times for 0.07. A conjecture."""
FAR = math.exp(-2.0)
"""Evidence that counts for less than this (7.4 times away) says nothing."""

MOST = 10.0
"""Points that a gain counts for at most, either way: twice what counts as a collapse. Less would make the
best of many look better than it is (tried on made evidence, see the tests)."""

_LEVEL, _QUARTER = 0.975, 0.75
_PRIOR_FREEDOM = 4.0  # what the variance of all recipes counts for beside a recipe's own: a conjecture
_LEAST_SD = 1e-3  # points
_LEAST_PRIOR = 0.25  # points: even where all means look like noise, such gains are possible


@dataclass(frozen=True)
class Target:
    """What is asked about: the budget as a share of the backbone's parameters, and rows of train."""

    share: float
    rows: int


@dataclass(frozen=True)
class Estimate:
    """What to expect of a recipe, in points of the score above plain LoRA's.

    Attributes:
        gain: expected over clusters, drawn towards zero.
        low, high: 95 % interval around it, as wide as that of the mean that was not drawn towards zero.
        lower_quartile: what the gain exceeds with a probability of 75 %, given the prior; recipes are ranked
            by it.
        observed: the mean as it was observed, before it was drawn towards zero.
        clusters, tasks, trainings: how many of each it comes from.
    """

    gain: float
    low: float
    high: float
    lower_quartile: float
    observed: float
    clusters: int
    tasks: int
    trainings: int


@dataclass(frozen=True)
class _Means:
    """Of one recipe: the clusters' means, how many trainings each counts for, and the spread within."""

    means: NDArray[np.float64]
    counts: NDArray[np.float64]
    squares: float
    freedom: float


def nearness(share: float, rows: int, target: Target, rows_seen: int) -> float:
    """What a training at a budget and a number of rows counts for, at most 1. Rows beyond those that a
    training sees are no further away."""
    seen = [min(max(1, n), rows_seen) for n in (rows, target.rows)]
    apart = math.log(share / target.share) ** 2 + math.log(seen[0] / seen[1]) ** 2
    return math.exp(-apart / (2 * _WIDTH**2))


def estimates(
    evidence: Evidence,
    target: Target,
    *,
    reference: Key | None = None,
    leave_out: Collection[str] = (),
) -> dict[Key, Estimate]:
    """What to expect of each recipe, without the clusters `leave_out`.

    Args:
        reference: what gains are to be over; settings in which it was not trained say nothing.

    Returns:
        Estimates of the recipes with near evidence from two clusters at least; the reference itself, whose
        gain is zero, is not among them.
    """
    # Gains over `reference` instead of what the evidence has gains over. A budget that is too small for it
    # has gains over a weaker LoRA, which look larger: these are left out.
    found, plain = evidence.observations, evidence.references
    base = {(o.setting, o.share): o for o in found if o.key == reference}
    gains: list[tuple[Observation, Key, float]] = []
    for o in found:
        at = base.get((o.setting, o.share))
        own = reference is None or plain.get(BackboneShare(o.setting.model, o.share)) == reference
        if o.key != reference and (own or at is not None):
            gains.append((o, o.key, o.gain - (0.0 if at is None else at.gain)))
    gains += [(o, plain[BackboneShare(o.setting.model, o.share)], -o.gain) for o in base.values()]

    # A training that several budgets lead to is one, of the budget that is nearest.
    seen = evidence.steps * evidence.batch_size
    nearest: dict[tuple[Key, Setting, int], tuple[Observation, float]] = {}
    for o, key, gain in gains:
        o = replace(o, key=key, gain=min(MOST, max(-MOST, gain)))
        near = nearness(o.share, o.setting.rows, target, seen)
        training = (o.key, o.setting, o.recipe)
        if o.cluster not in leave_out and near >= max(FAR, nearest.get(training, (o, 0.0))[1]):
            nearest[training] = o, near

    weights: dict[Key, list[tuple[Observation, float]]] = defaultdict(list)
    for o, near in nearest.values():
        weights[o.key].append((o, near))
    grouped = {key: _by_cluster(found) for key, found in weights.items()}
    means = {key: m for key, m in grouped.items() if len(m.means) > 1}
    if not means:
        return {}
    sigma2, tau2 = _variances(list(means.values()))
    pooled = {key: _pooled(m, sigma2, tau2) for key, m in means.items()}
    priors = {sign: _prior(list(pooled.values()), sign) for sign in (1, -1)}
    return {key: _estimate(p, priors[1 if p.mean > 0 else -1], weights[key]) for key, p in pooled.items()}


def _by_cluster(found: Sequence[tuple[Observation, float]]) -> _Means:
    clusters: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for o, weight in found:
        clusters[o.cluster].append((o.gain, weight))
    means, counts, squares, freedom = [], [], 0.0, 0.0
    for pairs in clusters.values():
        gains, w = np.array(pairs, dtype=np.float64).T
        mean = float(np.average(gains, weights=w))
        means.append(mean)
        counts.append(float(w.sum()))
        squares += float(w @ (gains - mean) ** 2)
        freedom += float(w.sum() - (w @ w) / w.sum())
    return _Means(np.array(means), np.array(counts), squares, freedom)


def _variances(found: Sequence[_Means]) -> tuple[float, float]:
    """σ² within and τ² between clusters: medians over the recipes, τ² by the method of moments for means of
    unequal precision (Hedges and Olkin 1985, chapter 9)."""
    inner = [m.squares / m.freedom for m in found if m.freedom > 0]
    sigma2 = max(float(np.median(inner)) if inner else 0.0, _LEAST_SD**2)
    outer = [float(m.means.var(ddof=1)) - sigma2 * float((1 / m.counts).mean()) for m in found]
    return sigma2, max(0.0, float(np.median(outer)))


class _Pooled(NamedTuple):
    """Mean over clusters with its standard error, and that which is moderated by the other recipes'; degrees
    of freedom of both."""

    mean: float
    error: float
    freedom: int
    moderated: float
    moderated_freedom: float


def _pooled(m: _Means, sigma2: float, tau2: float) -> _Pooled:
    precision = 1.0 / (tau2 + sigma2 / m.counts)
    mean = float(np.average(m.means, weights=precision))
    freedom = len(m.means) - 1
    misfit = float(precision @ (m.means - mean) ** 2) / freedom
    error = math.sqrt(max(1.0, misfit) / float(precision.sum()))
    several = _PRIOR_FREEDOM + freedom
    moderate = (_PRIOR_FREEDOM + freedom * misfit) / several
    return _Pooled(mean, error, freedom, math.sqrt(moderate / float(precision.sum())), several)


def _prior(pooled: Sequence[_Pooled], sign: int) -> float:
    """Variance of the true gains around zero, by the method of moments from the recipes on one side of it."""
    there = [p.mean**2 - p.moderated**2 for p in pooled if sign * p.mean > 0]
    return max(_LEAST_PRIOR**2, float(np.mean(there)) if there else 0.0)


def _estimate(p: _Pooled, prior: float, found: Sequence[tuple[Observation, float]]) -> Estimate:
    kept = prior / (prior + p.moderated**2)
    gain, half = kept * p.mean, float(stdtrit(p.freedom, _LEVEL)) * p.error
    quarter = float(stdtrit(p.moderated_freedom, _QUARTER)) * math.sqrt(kept) * p.moderated
    return Estimate(
        gain=gain,
        low=gain - half,
        high=gain + half,
        lower_quartile=gain - quarter,
        observed=p.mean,
        clusters=p.freedom + 1,
        tasks=len({o.setting.task for o, _ in found}),
        trainings=len({(o.setting, o.recipe) for o, _ in found}),
    )

"""Is a recipe within the margin of another one? What *select* says of it, as a probability.

The question is that of a region of practical equivalence (Benavoli et al. 2017,
jmlr.org/papers/v18/16-305.html): how probable is it that the true difference of two scores lies above minus
the margin?

- The difference d that fresh seeds show has the variance v: the seeds' part, with one variance of a seed for
  all that were trained again (seeds that collapsed speak of their own recipe alone), and the rows' part, of
  the same rows answered by both (see `significance`).
- Before it was seen, recipes that came so far differ as much as their seeds do, as in `promise`, and at least
  by the margin: a normal prior around 0 of variance t = max(2 s², margin²), s² being the variance of a seed.
- Then the true difference has the mean w d and the variance w v, with w = t / (t + v). Student's t of the
  seeds' degrees of freedom stands for the normal, as their variance is estimated.

What has one seed alone shows nothing of the variance of a seed: what the rows make of it stands in.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import ndtr, stdtr

from autopeft.search.selection.contender import RepeatedRuns
from autopeft.search.selection.significance import matched_groups, rows_variance
from autopeft.tasks.scored import ScoredSplit

__all__ = ["NonInferiority", "SeedNoise", "non_inferiority", "seed_noise", "without_lost"]


@dataclass(frozen=True)
class SeedNoise:
    """Variance of a score through its seed, and the degrees of freedom that it was estimated with."""

    variance: float
    degrees: int


@dataclass(frozen=True)
class NonInferiority:
    """What *select* says of a recipe beside another one.

    Attributes:
        difference: of their mean scores over fresh seeds.
        within: probability that the true difference is above minus the margin.
        level: probability that it is not below 0.
        weight: w, the share of the difference that is believed, from 0 where the rows tell nothing to 1.
    """

    difference: float
    within: float
    level: float
    weight: float


def seed_noise(scores: Iterable[Sequence[float]]) -> SeedNoise:
    """One variance for all recipes, from the scores of each with its seeds; 0 with no degree of freedom where
    none has two."""
    total, degrees = 0.0, 0
    for own in scores:
        if len(own) > 1:
            mean = math.fsum(own) / len(own)
            total += math.fsum((score - mean) ** 2 for score in own)
            degrees += len(own) - 1
    return SeedNoise(total / degrees if degrees else 0.0, degrees)


def without_lost(scores: Sequence[float], fall: float) -> list[float]:
    """The scores of a recipe's seeds that lie no further than `fall` below their median."""
    least = statistics.median(scores) - fall if scores else -math.inf
    return [score for score in scores if score >= least]


def non_inferiority(
    mine: RepeatedRuns, other: RepeatedRuns, noise: SeedNoise, split: ScoredSplit, margin: float
) -> NonInferiority | None:
    """What the fresh seeds of both say; `None` where one has no score, or nothing tells how far other rows
    would move it.

    Args:
        noise: of a seed (see `seed_noise`).
        split: the *select* rows.
        margin: by how much `mine` may be worse.
    """
    scores = [{run.seed: run.select for run in side.good if run.select is not None} for side in (mine, other)]
    if not all(scores):
        return None
    means = [math.fsum(side.values()) / len(side) for side in scores]
    difference = means[0] - means[1]
    parts = [{run.seed: run.select_values for run in side.good} for side in (mine, other)]
    groups = matched_groups((parts[0], parts[1]), scores[0], scores[1], split)
    rows = math.fsum(map(split.variance, means)) if groups is None else rows_variance(*groups, split)
    if not math.isfinite(rows):
        return None
    seed = noise.variance if noise.degrees else rows / 2
    variance = seed * sum(1 / len(side) for side in scores) + rows
    prior = max(2 * seed, margin**2)
    weight = prior / (prior + variance) if prior else 1.0
    spread = math.sqrt(weight * variance)
    # How probable it is that the true difference is above minus the margin, and above 0.
    probable = []
    for mean in (weight * difference + margin, weight * difference + 0.0):
        if spread == 0:
            probable.append(float(mean >= 0))
        else:
            t = mean / spread
            probable.append(float(stdtr(noise.degrees, t) if noise.degrees else ndtr(t)))
    within, level = probable
    return NonInferiority(difference, within, level, weight)

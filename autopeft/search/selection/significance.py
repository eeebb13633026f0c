"""Is the winner better than a baseline, or is that noise? Intervals for differences on *test*.

A score on *test* is uncertain for two reasons, and each has its part in the interval:

- **seeds**: another seed gives another model. Paired t over the differences of equal seeds; Welch's t where
  the two sides do not have the same seeds.
- **rows**: *test* is a finite sample, the same for every seed, so more seeds do not lower this part. Only
  scores are kept, not rows, so that the overlap of the two models' errors is unknown: they count as
  independent. Models of one backbone mostly err on the same rows, which makes the interval too wide rather
  than too narrow; three seeds that agree by luck cannot shrink it.

The half-widths of both parts add in squares (MOVER: Zou and Donner 2008, doi:10.1002/sim.3095; Howe 1974,
doi:10.1080/01621459.1974.10480196): exact where one part rules, and wider than needed in between. The usual
alternative, one t with Welch and Satterthwaite's degrees of freedom, claims a difference too often with three
paired seeds (8 instead of 5 in 100 in the worst case).

Each interval is for one comparison by itself. To say that the winner beats *all* baselines needs no
correction (every one of the tests has to come out, Berger 1982); to say that it beats *some* one does, and
`uncorrected` gives the sentence for it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from autopeft.tasks.scored import ScoredSplit

__all__ = ["Comparison", "ScoredSplit", "SelectionBias", "compare", "selection_bias", "uncorrected"]

_LEVEL = 0.95
_Z = float(stats.norm.ppf((1 + _LEVEL) / 2))
_DIGITS = 12  # equal scores of different order differ by rounding alone
Scores = Mapping[int, float | None]


@dataclass(frozen=True)
class Comparison:
    """The winner against one baseline on *test*.

    Attributes:
        difference: mean of the winner minus mean of the baseline; `None` where one has no score.
        low, high: 95 % interval of it; `None` with fewer than two seeds on a side.
        seeds: of the winner and of the baseline that gave a score.
        paired: whether both have the same seeds, so that the differences of equal seeds count.
        rows: of *test*.
        within_noise: whether the interval holds 0; with one seed true where the rows alone could make the
            difference, else `None`: not known.
    """

    baseline: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, int]
    paired: bool
    rows: int
    within_noise: bool | None

    def sentence(self, winner: str = "The winner") -> str:
        """The comparison in one plain sentence; differences are in points, hundredths of the score."""
        if self.difference is None:
            missing = winner if not self.seeds[0] else self.baseline
            return f"{winner} cannot be compared with {self.baseline}: {missing} has no score on test."
        small = 0 < abs(self.difference) < 0.001
        side = "above" if self.difference > 0 else "below"
        start = f"{winner} is {_points(abs(self.difference), small)} points {side} {self.baseline}"
        if self.difference == 0:
            start = f"{winner} scores as {self.baseline} does"
        mine, other = self.seeds
        count = f"{mine} seeds each" if mine == other else f"{mine} and {other} seeds"
        if self.low is None or self.high is None:
            count = count.replace("1 seeds", "one seed")
            if self.within_noise:
                return f"{start} ({count}): {self.rows:,} test rows alone cannot tell this from noise."
            return f"{start} ({count}): with so few seeds the noise is not known."
        interval = f"{_points(self.low, small, sign=True)} to {_points(self.high, small, sign=True)}"
        verdict = "the difference is within noise" if self.within_noise else "more than noise explains"
        return f"{start} (95 % interval {interval}, {count}): {verdict}."


def _points(value: float, fine: bool, *, sign: bool = False) -> str:
    text = f"{100 * value:{'+' if sign else ''}.{2 if fine else 1}f}"
    return text.replace("-", "−")


def compare(winner: Scores, baseline: Scores, split: ScoredSplit, *, name: str) -> Comparison:
    """Compare scores on *test*; see the top of this file for the interval.

    Args:
        winner, baseline: seed to score; `None` and values that are not finite stand for failed runs and are
            left out.
        split: the test rows.
        name: of the baseline.
    """
    mine, other = _finite(winner), _finite(baseline)
    seeds = len(mine), len(other)
    paired = mine.keys() == other.keys() and len(mine) > 1
    if not mine or not other:
        return Comparison(name, None, None, None, seeds, False, split.rows, None)
    a, b = _mean(mine.values()), _mean(other.values())
    difference = round(a - b, _DIGITS)
    rows = _Z * math.sqrt(split.variance(a) + split.variance(b))
    if min(seeds) < 2:
        unknown = None if abs(difference) > rows else True
        return Comparison(name, difference, None, None, seeds, False, split.rows, unknown)
    half = math.hypot(_half_width(mine, other, paired), rows)
    low, high = difference - half, difference + half
    return Comparison(name, difference, low, high, seeds, paired, split.rows, low <= 0 <= high)


def _half_width(mine: Mapping[int, float], other: Mapping[int, float], paired: bool) -> float:
    """The seeds' part of the interval; 0 where they do not vary at all."""
    if paired:
        parts = [_variance_of_mean([mine[seed] - other[seed] for seed in mine])]
    else:
        parts = [_variance_of_mean(list(mine.values())), _variance_of_mean(list(other.values()))]
    total = math.fsum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    # Welch and Satterthwaite's formula; of a single part its own degrees of freedom. Shares avoid underflow.
    freedom = 1 / math.fsum((variance / total) ** 2 / degrees for variance, degrees in parts)
    return float(stats.t.ppf((1 + _LEVEL) / 2, freedom)) * math.sqrt(total)


def _variance_of_mean(values: Sequence[float]) -> tuple[float, int]:
    """Estimated variance of the mean, and its degrees of freedom."""
    mean, size = _mean(values), len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (size - 1) / size, size - 1


def _mean(values: Collection[float]) -> float:
    return math.fsum(values) / len(values)


def _finite(scores: Scores) -> dict[int, float]:
    return {seed: s for seed, s in scores.items() if s is not None and math.isfinite(s)}


def uncorrected(comparisons: Sequence[Comparison]) -> str | None:
    """What to say beneath several comparisons; `None` where there is but one."""
    measured = sum(c.low is not None for c in comparisons)
    if measured < 2:
        return None
    return (
        f"Each of the {measured} intervals stands for itself and is not corrected for the others: that the "
        "winner beats all of them may be claimed, that it beats just one of them should be tested again."
    )


@dataclass(frozen=True)
class SelectionBias:
    """How much better the winner looks on the rows that chose it than on rows that were never used.

    Attributes:
        select, test: mean scores over the fresh seeds.
        noise: half-width of the 95 % interval that the rows of both splits alone give to the difference, or
            `None` where they are not known.
    """

    select: float
    test: float
    noise: float | None = None

    @property
    def value(self) -> float:
        """Select minus test."""
        return self.select - self.test

    def sentence(self) -> str:
        """The bias in one plain sentence."""
        small = 0 < abs(self.value) < 0.001
        text = f"Selection bias, select minus test: {_points(self.value, small, sign=True)} points"
        if self.noise is None:
            return f"{text}."
        chance = f"the choice of rows alone moves this by up to ±{_points(self.noise, small)}"
        return f"{text}; {chance}{'.' if abs(self.value) <= self.noise else ', so it is more than chance.'}"


def selection_bias(
    select_mean: float | None,
    test_mean: float | None,
    select: ScoredSplit | None = None,
    test: ScoredSplit | None = None,
) -> SelectionBias | None:
    """The selection bias of a winner, with its noise where both splits are given; `None` where a mean is
    missing or not finite."""
    if select_mean is None or test_mean is None or not math.isfinite(select_mean - test_mean):
        return None
    noise = None
    if select is not None and test is not None:
        variance = select.variance(select_mean) + test.variance(test_mean)
        noise = _Z * math.sqrt(variance)
    return SelectionBias(select_mean, test_mean, noise)

"""Is the winner better than a baseline, or is that noise? Intervals for differences on *test*.

A score on *test* is uncertain for two reasons, and each has its part in the interval:

- **seeds**: another seed gives another model. Welch's t over the scores of both sides. The two sides have the
  same seeds, but a seed means little to two different recipes: what they have in common through it makes the
  interval too wide rather than too narrow.
- **rows**: *test* is a finite sample, the same for every seed, so more seeds do not lower this part. Winner
  and baseline answer the same rows and mostly err on the same ones: only where they differ counts. What each
  group of rows contributes to a score (`pseudo_values`) is averaged over the seeds, that of the baseline is
  subtracted, and the variance of the differences over groups is the rows' part.

The model behind it: the score of seed s on group g is μ + seed(s) + group(g) + rest(s, g), for each side, and
the groups of both sides are the same. The variance over groups of what is averaged over S seeds holds rest/S
besides the group's own part, as does the variance over seeds; so it is taken off once, in the rows' part.

Two sides that answered all rows alike may still differ on further ones. So the rows' part has z² rows more on
which they differ, half of them either way (z = 1.96; Agresti and Coull 1998 for one share,
doi:10.1080/00031305.1998.10480550; Agresti and Min 2005 for paired ones, doi:10.1002/sim.1781). Each counts
what groups that differ do on average, each group weighted by the square of its difference: groups that a row
elsewhere moves a little, as all do where they are not equally large or the score is no mean, have no part in
it. A row that differs in one of three seeds is worth no less than one that differs in all, so where fewer
groups differ than the rows that are added, seeds count one by one. They do so too where they differ and their
means do not: what cancels, as where each side collapses to one class or the other by turns, says nothing of
further rows. Where no seed differs, it is what one row is worth beside a perfect score. Where most groups
differ all this is next to nothing; of 300 rows without a difference it makes ±1.3 points.

**Copies** of a text tell no more than the text: a model answers them alike, and twenty copies of thirty texts
say of other texts what thirty rows say. So the unit of all above is the text, of as many rows as it has
copies (`autopeft.tasks.copies` says what a copy is):

- All copies of a text are in one group. What a group contributes is summed over its rows before it is
  squared, which gives the variance of clusters of rows (the jackknife that leaves out clusters: MacKinnon,
  Nielsen and Webb, arXiv:2301.04527; paired answers of language models: Miller, arXiv:2411.00640).
- The z² rows more are z² texts more. One with many copies moves a score further than one with few, so what a
  group shows is divided by what the sizes of its texts let expect, and multiplied by the same of all texts.
- Where contributions are not known, the texts are counted, and Kish's design effect says how much their
  unequal sizes add (`ScoredSplit.variance`).

Where no row is a copy, none of this changes a figure. Groups of before could part copies: a search that has
compared finalists or baselines by such groups does not go on where its data have some.

Where contributions of rows are not known (runs of before they were kept) the texts of the two sides count as
independent, and paired t over the differences of equal seeds stands in: wider, as the overlap is unknown.

The half-widths of both parts add in squares (MOVER: Zou and Donner 2008, doi:10.1002/sim.3095; Howe 1974,
doi:10.1080/01621459.1974.10480196): exact where one part rules, and wider than needed in between. The usual
alternative, one t with Welch and Satterthwaite's degrees of freedom, claims a difference too often with three
paired seeds (8 instead of 5 in 100 in the worst case). `experiments/coverage` shows how often the interval
holds the true difference.

**Not worse** is another question than *better*: the winner is as good as a baseline within a margin where the
whole interval lies above minus the margin (Wellek 2010). The interval has two sides, so that this is said
wrongly in at most 2.5 of 100 searches.

Each interval is for one comparison by itself. To say that the winner beats *all* baselines needs no
correction (every one of the tests has to come out, Berger 1982); to say that it beats *some* one does, and
`uncorrected` gives the sentence for it.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from autopeft.tasks.kinds.metric import groups_of
from autopeft.tasks.scored import ScoredSplit

__all__ = [
    "MARGIN",
    "Comparison",
    "ScoredSplit",
    "SelectionBias",
    "compare",
    "compare_with_constant",
    "matched_groups",
    "points",
    "rows_variance",
    "selection_bias",
    "uncorrected",
    "within",
]

MARGIN = 0.01
"""Of the score: by how much a winner may be worse than a baseline and still count as equally good."""

_LEVEL = 0.95
_FEWEST_GROUPS = 10
_Z = float(ndtri((1 + _LEVEL) / 2))
_DIGITS = 12  # equal scores of different order differ by rounding alone
_ROUNDING = 1e-9  # so do contributions, which are differences of scores times 100
Scores = Mapping[int, float | None]
Parts = Mapping[int, Sequence[float]]
Numbers = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """The winner against one baseline on *test*.

    Attributes:
        difference: mean of the winner minus mean of the baseline; `None` where one has no score.
        low, high: 95 % interval of it; `None` with fewer than two seeds on a side, or where nothing tells how
            far other rows would move it.
        seeds: of the winner and of the baseline that gave a score; none of a baseline that is not trained.
        paired: whether the differences of equal seeds count, as both have the same.
        rows: of *test*.
        texts: how many of them are different, which is what counts; fewer than `rows` where some are copies.
        within_noise: whether the interval holds 0; with one seed true where the rows alone could make the
            difference, else `None`: not known.
        margin: by how much the winner may be worse and still count as equally good.
        as_good: whether the interval lies above minus the margin; `None` without an interval.
        by_rows: whether the two were compared row by row.
    """

    baseline: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: tuple[int, int]
    paired: bool
    rows: int
    within_noise: bool | None
    margin: float = MARGIN
    as_good: bool | None = None
    by_rows: bool = False
    texts: int | None = None

    def sentence(self, winner: str = "The winner") -> str:
        """The comparison in one plain sentence; differences are in points, hundredths of the score."""
        if self.difference is None:
            missing = winner if not self.seeds[0] else self.baseline
            return f"{winner} cannot be compared with {self.baseline}: {missing} has no score on test."
        small = 0 < abs(self.difference) < 0.001
        side = "above" if self.difference > 0 else "below"
        start = f"{winner} is {points(abs(self.difference), small)} points {side} {self.baseline}"
        if self.difference == 0:
            start = f"{winner} scores as {self.baseline} does"
        mine, other = self.seeds
        count = f"{mine} seeds each" if mine == other else f"{mine} and {other} seeds"
        if not other:
            count = f"{mine} seeds"
        rows = f"{self.rows:,} test rows"
        if self.texts is not None and self.texts < self.rows:
            rows = f"{self.texts:,} different test rows"
            count += f", {self.texts:,} different rows among {self.rows:,} of test"
        if self.low is None or self.high is None:
            count = re.sub(r"\b1 seeds", "one seed", count)
            if min(mine, other or mine) > 1:
                return f"{start} ({count}): how far other rows would move this is not known."
            if self.within_noise:
                return f"{start} ({count}): {rows} alone cannot tell this from noise."
            return f"{start} ({count}): with so few seeds the noise is not known."
        interval = f"{points(self.low, small, sign=True)} to {points(self.high, small, sign=True)}"
        verdict = "the difference is within noise" if self.within_noise else "more than noise explains"
        if self.within_noise and self.as_good:
            verdict = f"as good, {within(self.margin)}"
        return f"{start} (95 % interval {interval}, {count}): {verdict}."


def points(value: float, fine: bool = False, *, sign: bool = False) -> str:
    """A difference of scores in hundredths, with one digit or two (`fine`)."""
    text = f"{100 * value:{'+' if sign else ''}.{2 if fine else 1}f}"
    return text.replace("-", "−")


def within(margin: float) -> str:
    """A margin in words: `within 1 point`, `within 0.25 points`."""
    return f"within {100 * margin:.6g} point{'' if margin == MARGIN else 's'}"


def compare(
    winner: Scores,
    baseline: Scores,
    split: ScoredSplit,
    *,
    name: str,
    parts: tuple[Parts, Parts] | None = None,
    margin: float = MARGIN,
) -> Comparison:
    """Compare scores on *test*; see the top of this file for the interval.

    Args:
        winner, baseline: seed to score; `None` and values that are not finite stand for failed runs and are
            left out.
        split: the test rows.
        name: of the baseline.
        parts: contributions of groups of rows to the scores of winner and baseline, by seed.
        margin: by how much the winner may be worse and still count as equally good.
    """
    mine, other = _finite(winner), _finite(baseline)
    seeds = len(mine), len(other)
    if not mine or not other:
        return Comparison(name, None, None, None, seeds, False, split.rows, None, margin, texts=split.texts)
    a, b = statistics.fmean(mine.values()), statistics.fmean(other.values())
    difference = round(a - b, _DIGITS)
    groups = None if parts is None else matched_groups(parts, mine, other, split)
    if groups is None:
        rows = _Z * math.sqrt(split.variance(a) + split.variance(b))
    else:
        rows = _Z * math.sqrt(rows_variance(*groups, split))
    if not math.isfinite(rows):
        return Comparison(
            name, difference, None, None, seeds, False, split.rows, None, margin, texts=split.texts
        )
    if min(seeds) < 2:
        unknown = None if abs(difference) > rows else True
        return Comparison(
            name, difference, None, None, seeds, False, split.rows, unknown, margin, texts=split.texts
        )
    paired = groups is None and mine.keys() == other.keys()
    half = math.hypot(_seeds_half(mine, other, paired=paired), rows)
    low, high = difference - half, difference + half
    return Comparison(
        name, difference, low, high, seeds, paired, split.rows, low <= 0 <= high,
        margin, low > -margin, groups is not None, split.texts,
    )  # fmt: skip


def compare_with_constant(
    winner: Scores,
    split: ScoredSplit,
    *,
    name: str,
    score: float,
    parts: tuple[Parts, Sequence[float]],
    margin: float = MARGIN,
) -> Comparison:
    """Compare scores on *test* with that of the same answer for every row, which no seed changes.

    Args:
        winner, split, margin: see `compare`.
        name, score: of the answer.
        parts: contributions of groups of rows to the scores of the winner, by seed, and to the answer's.
    """
    own, answer = parts
    seeds = _finite(winner)
    found = compare(
        winner,
        dict.fromkeys(seeds, score),
        split,
        name=name,
        parts=(own, dict.fromkeys(seeds, answer)),
        margin=margin,
    )
    return replace(found, seeds=(len(seeds), 0), paired=False)


def matched_groups(
    parts: tuple[Parts, Parts], mine: Mapping[int, float], other: Mapping[int, float], split: ScoredSplit
) -> tuple[Numbers, Numbers] | None:
    """Contributions of both sides, (seeds, groups) each; `None` where some are missing or do not match, also
    those of groups that part copies."""
    found = [
        [side.get(seed, ()) for seed in scores] for side, scores in zip(parts, (mine, other), strict=True)
    ]
    sizes = {len(values) for side in found for values in side}
    if len(sizes) != 1 or min(sizes) < _FEWEST_GROUPS:
        return None
    if split.sizes and sizes != {groups_of(split.sizes).max() + 1}:
        return None
    return np.array(found[0]), np.array(found[1])


def rows_variance(mine: Numbers, other: Numbers, split: ScoredSplit) -> float:
    """Variance of the difference over rows, without what differs from seed to seed where that can be told,
    and with that of a few rows more on which the sides differ.

    Args:
        mine, other: (seeds, groups).
        split: the rows; contributions of groups that keep its copies together.
    """
    groups = mine.shape[1]
    apart = mine.mean(0) - other.mean(0)
    found: float = float(np.var(apart, ddof=1)) / groups
    for side in (mine, other):
        if len(side) > 1:
            rest = side - side.mean(1, keepdims=True)
            found -= float(np.var(rest, axis=0, ddof=1).sum()) / (groups * (groups - 1)) / len(side)

    # How far a text of each group moves the score, beside one of all texts, (groups,): root mean squares of
    # their sizes. 1 where no row is a copy.
    weights: Numbers | float = 1.0
    if split.sizes:
        group_of, squares = groups_of(split.sizes), np.square(split.sizes, dtype=np.float64)
        weights = np.sqrt(np.bincount(group_of, squares) / np.bincount(group_of) / squares.mean())

    # The square of what a text on which the sides differ adds to a score; infinite where none does and
    # nothing is known of the metric's range.
    worth, differing = _typical(apart / weights)  # both 0 where only single seeds differ
    by_seed, each = _typical((mine[:, None] - other) / weights)
    if not each:
        further = split.least_variance
    else:
        if min(differing, each / (len(mine) * len(other))) < _Z**2:
            worth = max(worth, by_seed)
        further = float(worth / groups**2)
    return max(found, 0.0) + _Z**2 * further


def _typical(apart: Numbers) -> tuple[float, float]:
    """The square of a typical difference, each weighted by its own square, and how many differ (of equal
    ones exactly: Kish's effective number)."""
    squares = apart[np.abs(apart) > _ROUNDING] ** 2
    if not squares.size:
        return 0.0, 0.0
    total, fourth = float(squares.sum()), float((squares**2).sum())
    return fourth / total, total**2 / fourth


def _seeds_half(mine: Mapping[int, float], other: Mapping[int, float], *, paired: bool) -> float:
    """The seeds' part of the interval; 0 where they do not vary at all."""
    samples = [list(mine.values()), list(other.values())]
    if paired:
        samples = [[mine[seed] - other[seed] for seed in mine]]
    parts: list[tuple[float, int]] = []  # estimated variance of each mean, and its degrees of freedom
    for values in samples:
        mean, size = statistics.fmean(values), len(values)
        parts.append((math.fsum((v - mean) ** 2 for v in values) / (size - 1) / size, size - 1))
    total = math.fsum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    # Welch and Satterthwaite's formula; of a single part its own degrees of freedom. Shares avoid underflow.
    freedom = 1 / math.fsum((variance / total) ** 2 / degrees for variance, degrees in parts)
    return float(stdtrit(freedom, (1 + _LEVEL) / 2)) * math.sqrt(total)


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

    def sentence(self) -> str:
        """The bias in one plain sentence."""
        bias = self.select - self.test
        small = 0 < abs(bias) < 0.001
        text = f"Selection bias, select minus test: {points(bias, small, sign=True)} points"
        if self.noise is None:
            return f"{text}."
        chance = f"the choice of rows alone moves this by up to ±{points(self.noise, small)}"
        return f"{text}; {chance}{'.' if abs(bias) <= self.noise else ', so it is more than chance.'}"


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
        noise = _Z * math.sqrt(select.variance(select_mean) + test.variance(test_mean))
        noise = noise if math.isfinite(noise) else None
    return SelectionBias(select_mean, test_mean, noise)

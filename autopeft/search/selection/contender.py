"""A recipe's runs with fresh seeds, and what a table shows of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.runs.records import CountTable, Sample
from autopeft.search.core.jobs import FailureKind, Job, JobResult, TrainJob

__all__ = [
    "LOST",
    "SEED_STRIDE",
    "Contender",
    "FreshRun",
    "FreshScores",
    "RepeatedRuns",
    "fresh_seeds",
    "mean_sd",
]

SEED_STRIDE = 1000
LOST = 0.05
"""Of the metric's range: a seed that falls so far below the median of its recipe's seeds has collapsed."""


def mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n − 1); the latter is `None` below two values, both without any."""
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def fresh_seeds(seed: int, count: int) -> list[int]:
    """Seeds that no search trial used (trials all use `seed` itself)."""
    return [seed + SEED_STRIDE + i for i in range(count)]


@dataclass
class FreshRun:
    """One training run with a fresh seed; scores are `None` until known, `error` tells why they never are.
    `pseudo_values` and `select_values` are the contributions of groups of *test* and of *select* rows,
    `rank` is what the run is ranked by, higher is better, and `ranked_by` its measure (see `JobResult`).

    `counts` is what the run left: data-dependent methods leave something else with each seed.
    """

    job: str
    seed: int
    select: float | None = None
    test: float | None = None
    error: str | None = None
    failure: FailureKind | None = None
    counts: CountTable | None = None
    pseudo_values: tuple[float, ...] = ()
    select_values: tuple[float, ...] = ()
    rank: float = 0.0
    ranked_by: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


class FreshScores:
    """Mean and standard deviation of scores with fresh seeds; `None` where there are too few."""

    select: tuple[float, ...]
    test: tuple[float, ...]

    @property
    def select_mean(self) -> float | None:
        return mean_sd(self.select)[0]

    @property
    def select_sd(self) -> float | None:
        return mean_sd(self.select)[1]

    @property
    def test_mean(self) -> float | None:
        return mean_sd(self.test)[0]

    @property
    def test_sd(self) -> float | None:
        return mean_sd(self.test)[1]


@dataclass(frozen=True)
class Contender(FreshScores):
    """What a table shows of a winner or a baseline.

    Attributes:
        select, test: scores of each fresh seed.
        by_seed: score on *test* of each fresh seed, `None` where it failed.
        parts: contributions of groups of *test* rows to these scores, by seed.
        measured: what its runs took, the median of each figure (see `JobResult.measured`).
        number: the study's trial, for a search's finalist.
    """

    name: str
    recipe: Mapping[str, Any] = field(repr=False)
    counts: CountTable
    select: tuple[float, ...] = ()
    test: tuple[float, ...] = ()
    number: int | None = None
    errors: tuple[str, ...] = ()
    by_seed: Mapping[int, float | None] = field(default_factory=dict, repr=False)
    parts: Mapping[int, tuple[float, ...]] = field(default_factory=dict, repr=False)
    measured: Mapping[str, float] = field(default_factory=dict, repr=False)


class RepeatedRuns:
    """A recipe and its runs with fresh seeds.

    Attributes:
        searched: its ranks on *select* before these, each with its measure (see `JobResult.ranked_by`).
    """

    def __init__(self, name: str, kind: Literal["confirm", "baseline"]) -> None:
        self.name, self.kind = name, kind
        self.recipe: Mapping[str, Any] = {}
        self.counts: CountTable = {}
        self.number: int | None = None
        self.runs: dict[str, FreshRun] = {}
        self.searched: list[tuple[str | None, float]] = []

    def final_jobs(
        self, prefix: str, seeds: Iterable[int], steps: int, splits: tuple[str, ...], keep: bool
    ) -> list[Job]:
        jobs: list[Job] = []
        for seed in seeds:
            job = TrainJob(
                id=f"{prefix}-s{seed}",
                kind=self.kind,
                label=f"{self.name}, seed {seed}",
                recipe=self.recipe,
                seed=seed,
                steps=steps,
                splits=splits,
                keep_above=-math.inf if keep else None,
                number=self.number,
                samples=keep and splits[-1] == "test",
            )
            self.runs[job.id] = FreshRun(job.id, seed)
            jobs.append(job)
        return jobs

    def take(self, result: JobResult) -> None:
        run = self.runs[result.job]
        run.error, run.failure = result.error, result.failure
        if result.error is None:
            run.select, run.test = result.scores.get("select"), result.scores.get("test")
            run.counts = result.counts or run.counts
            run.pseudo_values, run.select_values = result.pseudo_values, result.select_values
            run.measured, run.rank, run.ranked_by = result.measured, result.rank or 0.0, result.ranked_by
            run.samples = result.samples
        # Those of the best run, whose weights are the ones to keep.
        left = next((r.counts for r in self.good if r.counts), None)
        if self.recipe and left is not None:
            self.counts = left

    @property
    def measured(self) -> dict[str, float]:
        """What its runs took, the median of each figure that was measured here, such as `step_time`."""
        found = [run.measured for run in self.runs.values()]
        names = dict.fromkeys(name for figures in found for name in figures)
        return {name: statistics.median(f[name] for f in found if name in f) for name in names}

    @property
    def ranks(self) -> list[float]:
        """What each of its runs is ranked by on *select*: those of fresh seeds, and before them that of the
        search where it is of the same measure."""
        measures = {run.ranked_by for run in self.good}
        before = [rank for measure, rank in self.searched if not measures or measures == {measure}]
        return [*before, *(run.rank for run in self.good)]

    @property
    def complete(self) -> bool:
        return bool(self.runs) and all(
            r.select is not None or r.error is not None for r in self.runs.values()
        )

    @property
    def good(self) -> list[FreshRun]:
        """Runs with a finite score on select, best first."""
        scored = [r for r in self.runs.values() if r.select is not None and math.isfinite(r.select)]
        return sorted(scored, key=lambda r: -r.rank)

    @property
    def whole(self) -> bool:
        """Whether all of its runs have a score."""
        return len(self.good) == len(self.runs)

    def contender(self) -> Contender:
        runs = list(self.runs.values())
        return Contender(
            name=self.name,
            recipe=self.recipe,
            counts=self.counts,
            select=tuple(r.select for r in runs if r.select is not None),
            test=tuple(r.test for r in runs if r.test is not None),
            number=self.number,
            errors=tuple(r.error for r in runs if r.error is not None),
            by_seed={r.seed: r.test for r in runs},
            parts={r.seed: r.pseudo_values for r in runs if r.pseudo_values},
            measured=self.measured,
        )

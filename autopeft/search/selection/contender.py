"""Who wins: finalists with fresh seeds ranked on *select*; *test* is for winner and baselines alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from autopeft.runs.records import CountTable, TrialRecord
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.baselines import Baseline

__all__ = [
    "BaselineRuns",
    "Contender",
    "Finalist",
    "FreshRun",
    "choose_finalists",
    "choose_winner",
    "mean_sd",
]

_SEED_STRIDE = 1000


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
    return [seed + _SEED_STRIDE + i for i in range(count)]


@dataclass
class FreshRun:
    """One training run with a fresh seed; scores are `None` until known, `error` tells why they never are."""

    job: str
    seed: int
    select: float | None = None
    test: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Contender:
    """What a table shows of a winner or a baseline.

    Attributes:
        select, test: scores of each fresh seed.
        by_seed: score on *test* of each fresh seed, `None` where it failed.
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


class _Field:
    """A recipe and its runs with fresh seeds."""

    def __init__(self, name: str, kind: Literal["confirm", "baseline"]) -> None:
        self.name, self.kind = name, kind
        self.recipe: Mapping[str, Any] = {}
        self.counts: CountTable = {}
        self.number: int | None = None
        self.runs: dict[str, FreshRun] = {}

    def final_jobs(
        self, prefix: str, seeds: Iterable[int], steps: int, splits: tuple[str, ...], keep: bool
    ) -> list[Job]:
        jobs = []
        for seed in seeds:
            job = Job(
                id=f"{prefix}-s{seed}",
                kind=self.kind,
                label=f"{self.name}, seed {seed}",
                recipe=self.recipe,
                seed=seed,
                steps=steps,
                splits=splits,
                keep_above=-math.inf if keep else None,
                number=self.number,
            )
            self.runs[job.id] = FreshRun(job.id, seed)
            jobs.append(job)
        return jobs

    def take(self, result: JobResult) -> None:
        run = self.runs[result.job]
        run.error = result.error
        if self.recipe:
            self.counts = result.counts or self.counts
        if result.error is None:
            run.select, run.test = result.scores.get("select"), result.scores.get("test")

    @property
    def complete(self) -> bool:
        return bool(self.runs) and all(
            r.select is not None or r.error is not None for r in self.runs.values()
        )

    @property
    def good(self) -> list[FreshRun]:
        """Runs with a finite score on select, best first."""
        scored = [r for r in self.runs.values() if r.select is not None and math.isfinite(r.select)]
        return sorted(scored, key=lambda r: -(r.select or 0.0))

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
        )


class Finalist(_Field):
    """One of the search's best recipes, to be retrained with fresh seeds."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(f"finalist {record.number}", "confirm")
        self.recipe, self.counts, self.number = record.recipe, record.counts or {}, record.number

    def jobs(self, seeds: Iterable[int], steps: int) -> list[Job]:
        """Its runs; they keep their weights, of which the winner's are tested."""
        return self.final_jobs(f"confirm-{self.number}", seeds, steps, ("select",), keep=True)


class BaselineRuns(_Field):
    """A baseline: a sweep of its candidates on *select* with the search's own seed, then fresh seeds of the
    best; where each candidate is a run of its own, one fresh seed for each."""

    def __init__(self, index: int, baseline: Baseline) -> None:
        super().__init__(baseline.name, "baseline")
        self.counts = baseline.counts
        self._index, self._baseline = index, baseline
        self.sweep: dict[str, float | None] = {}
        self._open: set[str] = set()
        self._given = baseline.sweep_runs == 0
        self.started = False

    def sweep_jobs(self, seed: int, steps: int) -> list[Job]:
        """One run for each candidate; none where there is nothing to choose."""
        self._given = True
        jobs = []
        for i, recipe in enumerate(self._baseline.candidates[: self._baseline.sweep_runs]):
            job = Job(
                id=f"baseline-{self._index}-sweep{i}",
                kind="baseline",
                label=self._baseline.label(i),
                recipe=recipe,
                seed=seed,
                steps=steps,
            )
            self.sweep[job.id] = None
            self._open.add(job.id)
            jobs.append(job)
        return jobs

    def take_sweep(self, result: JobResult) -> None:
        """Store one run of the sweep."""
        self._open.discard(result.job)
        self.sweep[result.job] = result.score

    @property
    def open(self) -> int:
        """Runs of the sweep that have not ended."""
        return len(self._open)

    @property
    def swept(self) -> bool:
        """Whether the whole sweep has been given out and has ended."""
        return self._given and not self._open

    def later(self, seeds: int) -> int:
        """Runs with fresh seeds that are still to come."""
        return 0 if self.started else self._baseline.fresh_runs(seeds)

    def jobs(self, seeds: Sequence[int], steps: int) -> list[Job]:
        """Runs with fresh seeds of the chosen candidate, or of each; none where the whole sweep failed."""
        self.started = True
        prefix, splits = f"baseline-{self._index}", ("select", "test")
        if self._baseline.each:
            fresh = fresh_seeds(seeds[0] - _SEED_STRIDE, len(self._baseline.candidates))
            jobs = []
            for i, recipe in enumerate(self._baseline.candidates):
                self.recipe = recipe
                jobs += self.final_jobs(f"{prefix}-{i}", fresh[i : i + 1], steps, splits, keep=False)
            self.recipe = {}  # there is not one; the counts stay those of the baseline, their mean
            return jobs
        scored = [(score, i) for i, score in enumerate(self.sweep.values()) if score is not None]
        if self.sweep and not scored:
            return []
        chosen = max(scored, key=lambda pair: (pair[0], -pair[1]))[1] if scored else 0
        self.recipe, self.name = self._baseline.candidates[chosen], self._baseline.title(chosen)
        self.counts = self._baseline.counts_of(chosen)
        return self.final_jobs(prefix, seeds, steps, splits, keep=False)


def choose_finalists(records: Iterable[TrialRecord], top: int) -> list[TrialRecord]:
    """The best `top` of `records` (best first already) that are different recipes."""
    seen: set[str] = set()
    chosen: list[TrialRecord] = []
    for record in records:
        if record.hash not in seen and len(chosen) < top:
            seen.add(record.hash)
            chosen.append(record)
    return chosen


def choose_winner(finalists: Sequence[Finalist]) -> Finalist | None:
    """The finalist with the best mean on *select*; one whose runs partly failed comes after the others."""
    scored = [f for f in finalists if f.good]
    if not scored:
        return None

    def rank(f: Finalist) -> tuple[bool, float, float]:
        mean = mean_sd([r.select for r in f.good if r.select is not None])[0]
        return (len(f.good) == len(f.runs), mean or 0.0, -f.counts.get("deployed", 0.0))

    return max(scored, key=rank)

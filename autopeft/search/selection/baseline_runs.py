"""The runs of a baseline: a sweep of its candidates, then fresh seeds of the best."""

from __future__ import annotations

from collections.abc import Sequence

from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.optimization.pareto import order
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import SEED_STRIDE, RepeatedRuns, fresh_seeds

__all__ = ["BaselineRuns"]


class BaselineRuns(RepeatedRuns):
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
        jobs: list[Job] = []
        for i, recipe in enumerate(self._baseline.candidates[: self._baseline.sweep_runs]):
            job = TrainJob(
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
            fresh = fresh_seeds(seeds[0] - SEED_STRIDE, len(self._baseline.candidates))
            jobs: list[Job] = []
            for i, recipe in enumerate(self._baseline.candidates):
                self.recipe = recipe
                jobs += self.final_jobs(f"{prefix}-{i}", fresh[i : i + 1], steps, splits, keep=False)
            self.recipe = {}  # there is not one; the counts stay those of the baseline, their mean
            return jobs
        scored = [(score, i) for i, score in enumerate(self.sweep.values()) if score is not None]
        if self.sweep and not scored:
            return []
        chosen = min(scored, key=lambda pair: order(pair[0], number=pair[1]))[1] if scored else 0
        self.recipe, self.name = self._baseline.candidates[chosen], self._baseline.title(chosen)
        self.counts = self._baseline.counts_of(chosen)
        return self.final_jobs(prefix, seeds, steps, splits, keep=False)

"""How long a search will take, from the timings of its own jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from autopeft.effort import Effort
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.baselines import Baseline

__all__ = ["TimeBudget"]

_SEARCH_SHARE = 0.5
_RELATIVE = {"trial": 1.0, "confirm": 1.0, "baseline": 0.5, "test": 0.2}


class TimeBudget:
    """Time left and whether another trial still fits into the time budget, from the seconds of finished jobs.

    Seconds of a trial are those of its steps, as many as a candidate of the strategy takes on average.

    Half of the time budget is the search's; from then on a trial is refused when finalists and baselines
    would no longer fit. At least two trials are always allowed. Where even that leaves too little for the
    finals, `shrink` takes finalists and seeds away, down to one finalist with two seeds.
    """

    def __init__(
        self,
        effort: Effort,
        baselines: Sequence[Baseline],
        workers: int,
        seconds: float | None = None,
        *,
        expected_steps: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effort, self.workers, self._budget, self._clock = effort, max(workers, 1), seconds, clock
        self._baselines = baselines
        self._expected = float(effort.steps if expected_steps is None else expected_steps)
        self._start = clock()
        self._steps: dict[str, int] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._left = self._finals(effort, sum(b.sweep_runs for b in baselines))

    def _finals(self, effort: Effort, sweeps: int) -> dict[str, int]:
        """Jobs after the search, of which `sweeps` belong to sweeps of the baselines."""
        return {
            "confirm": effort.top * effort.seeds,
            "baseline": sweeps + sum(b.fresh_runs(effort.seeds) for b in self._baselines),
            "test": effort.seeds,
        }

    def progress(self, job: str, step: int) -> None:
        """Note how far a running job is."""
        self._steps[job] = step

    def finished(self, job: Job, seconds: float) -> None:
        """Note how long a job took."""
        total, count = self._sums.get(job.kind, (0.0, 0))
        steps = _part(job)[1] if job.kind == "trial" else 1
        self._sums[job.kind] = (total + seconds, count + steps)
        self._steps.pop(job.id, None)
        if job.kind in self._left:
            self._left[job.kind] = max(0, self._left[job.kind] - 1)

    def mean(self, kind: str) -> float | None:
        """Mean seconds of a kind of job, of a trial over all its parts; where none has finished, a share of a
        full trial's."""
        if kind != "trial" and kind in self._sums:
            total, count = self._sums[kind]
            return total / count
        if "trial" in self._sums:
            total, count = self._sums["trial"]
            each = total / count
            return each * (self._expected if kind == "trial" else _RELATIVE[kind] * self._effort.steps)
        return None

    def _work(self, jobs: dict[str, int]) -> float | None:
        """Seconds of work in so many jobs of each kind, or `None` before the first trial has finished."""
        means = {kind: self.mean(kind) for kind in jobs}
        if any(m is None for m in means.values()):
            return None
        return sum((means[kind] or 0.0) * n for kind, n in jobs.items())

    def allows(self, launched: int, running: int) -> bool:
        """Whether the time budget has room for another trial and all that follows."""
        if self._budget is None or launched < 2:
            return True
        elapsed = self._clock() - self._start
        trial, after = self.mean("trial"), self._work(self._left)
        if trial is None or after is None:
            return elapsed < self._budget / 4
        if elapsed + trial / 2 <= _SEARCH_SHARE * self._budget:
            return True
        work = (running + 1) * trial + after
        return elapsed + work / self.workers <= self._budget

    def shrink(self, effort: Effort, sweeps: int) -> Effort:
        """The effort with as many finalists and seeds as the time left allows; `sweeps` jobs are still to
        end."""
        if self._budget is None:
            return effort
        left = (self._budget - (self._clock() - self._start)) * self.workers
        fewer = [replace(effort, top=top) for top in range(effort.top, 0, -1)]
        fewer += [replace(effort, top=1, seeds=seeds) for seeds in range(effort.seeds - 1, 1, -1)]
        for smaller in fewer:
            self._effort, self._left = smaller, self._finals(smaller, sweeps)
            if (self._work(self._left) or 0.0) <= left:
                break
        return self._effort

    def remaining(self, steps_left: float | None, running: Sequence[Job]) -> float | None:
        """Seconds left, or `None` before the first trial has finished.

        With a time budget it is never more than what is left of it.

        Args:
            steps_left: the strategy's, `None` once the search itself has ended.
        """
        trial, after = self.mean("trial"), self._work(self._left)
        if trial is None or after is None:
            return None
        work = after
        if steps_left is not None:
            work += steps_left / self._expected * trial
        for job in running:
            mean = self.mean(job.kind) or 0.0
            start, steps = _part(job)
            done = min(1.0, (self._steps.get(job.id, start) - start) / steps) if steps else 0.0
            if job.kind == "trial":
                # What goes on is in the expected steps already, what begins is not.
                mean *= steps / self._expected
                work += mean * (1.0 - done) - (mean if steps_left is not None and start > 0 else 0.0)
            else:
                work -= mean * done
        left = max(0.0, work) / self.workers
        if self._budget is not None:
            left = min(left, max(0.0, self._budget - (self._clock() - self._start)))
        return left


def _part(job: Job) -> tuple[int, int]:
    """The first step of a job's training, and its number of steps."""
    if not isinstance(job, TrainJob):
        return 0, job.steps
    return job.start, (job.until or job.steps) - job.start

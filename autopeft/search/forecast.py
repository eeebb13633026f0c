"""How long a search will take, from the timings of its own jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from autopeft.search.effort import Effort
from autopeft.search.jobs import Job

__all__ = ["Forecast"]

_RELATIVE = {"trial": 1.0, "confirm": 1.0, "baseline": 0.5, "test": 0.2}


class Forecast:
    """Time left and whether another trial still fits into the time budget, from the seconds of finished jobs.

    The work after the search is planned for: a trial is refused when finalists and baselines would no
    longer fit. At least two trials are always allowed.
    """

    def __init__(
        self,
        effort: Effort,
        baselines: int,
        workers: int,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._effort, self.workers, self._budget, self._clock = effort, max(workers, 1), seconds, clock
        self._start = clock()
        self._steps: dict[str, int] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._left = {
            "confirm": effort.top * effort.seeds,
            "baseline": baselines * (effort.rates + effort.seeds),
            "test": effort.seeds,
        }

    def progress(self, job: str, step: int) -> None:
        """Note how far a running job is."""
        self._steps[job] = step

    def finished(self, job: Job, seconds: float) -> None:
        """Note how long a job took."""
        total, count = self._sums.get(job.kind, (0.0, 0))
        self._sums[job.kind] = (total + seconds, count + 1)
        self._steps.pop(job.id, None)
        if job.kind in self._left:
            self._left[job.kind] = max(0, self._left[job.kind] - 1)

    def mean(self, kind: str) -> float | None:
        """Mean seconds of a kind of job; where none of it has finished, a share of a trial's."""
        if kind in self._sums:
            total, count = self._sums[kind]
            return total / count
        if "trial" in self._sums:
            total, count = self._sums["trial"]
            return _RELATIVE[kind] * total / count
        return None

    def _after_search(self) -> float | None:
        means = {kind: self.mean(kind) for kind in self._left}
        if any(m is None for m in means.values()):
            return None
        return sum((means[kind] or 0.0) * n for kind, n in self._left.items())

    def allows_trial(self, launched: int, running: int) -> bool:
        """Whether the time budget has room for another trial and all that follows."""
        if self._budget is None or launched < 2:
            return True
        elapsed = self._clock() - self._start
        trial, after = self.mean("trial"), self._after_search()
        if trial is None or after is None:
            return elapsed < self._budget / 4
        work = (running + 1) * trial + after
        return elapsed + work / self.workers <= self._budget

    def remaining(self, launched: int, running: Sequence[Job], searching: bool) -> float | None:
        """Seconds left, or `None` before the first trial has finished.

        With a time budget it is never more than what is left of it.
        """
        trial, after = self.mean("trial"), self._after_search()
        if trial is None or after is None:
            return None
        work = after
        if searching:
            work += max(0, self._effort.trials - launched) * trial
        for job in running:
            mean = self.mean(job.kind) or 0.0
            done = self._steps.get(job.id, 0) / job.steps if job.steps else 0.0
            work += mean * (1.0 - min(done, 1.0)) - (mean if job.kind in self._left else 0.0)
        left = max(0.0, work) / self.workers
        if self._budget is not None:
            left = min(left, max(0.0, self._budget - (self._clock() - self._start)))
        return left

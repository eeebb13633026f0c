"""How long jobs take, from those that have ended, and what the time limit of a search leaves room for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from autopeft.effort import Effort
from autopeft.recipe.pooling import READINGS
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.finals import Finals

__all__ = ["TimeBudget"]

_SEARCH_SHARE = 0.5
_AT_LEAST = 2  # trials
_HEAD = 0.1  # of a training of a hybrid, that of the head alone
_SCORING = 0.2  # of a full training, scoring a split, before anything is known of it
_SCORED = "scored"


class TimeBudget:
    """The time limit of a search.

    A job takes as long as others of its kind did for each step; where none has ended, as long as trials, and
    a baseline as the shortest of them, as it has one method where trials have several. What only scores has a
    kind of its own, as some kinds of task write answers to *test*: before one has ended it takes what trials
    took beside their steps.

    Half of the limit is the search's; from then on a trial is refused when finalists and baselines would no
    longer fit. Two trials at least are always allowed, and more only where the shortest finals would still
    fit. A trial that takes much longer than others is given up (`within`).

    Args:
        limit: seconds of the whole run, or `None`.
        expected_steps: mean steps of a trial over all of its parts.
        test_share: rows of *test* for each of *select*.
        spent: seconds that earlier processes of the run took.
        clock: monotonic seconds.

    Attributes:
        steps: how far each running job is.
    """

    def __init__(
        self,
        effort: Effort,
        workers: int,
        limit: float | None = None,
        *,
        expected_steps: float | None = None,
        test_share: float = 1.0,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers, self.limit, self._clock = max(workers, 1), limit, clock
        self._full, self._expected = effort.steps, float(expected_steps or effort.steps)
        self._start, self._test_share = clock() - spent, test_share
        self.steps: dict[str, int] = {}  # of running jobs
        self._sums: dict[str, tuple[float, float]] = {}  # by kind: seconds, and full trainings
        self._shortest = math.inf  # seconds of a full training, of the shortest trial
        self._beside = 0.0, 0  # seconds that trials took beside their steps, and parts of trials

    # Learning
    # ------------------------------------------------------------------------------------------------------

    def finished(self, job: Job, seconds: float, step_time: float | None = None) -> None:
        """Note how long a job took, and each of its steps."""
        self.steps.pop(job.id, None)
        if job.kind == "trial" and not job.steps:  # it scores *select* with weights that it shares
            beside, parts = self._beside
            self._beside = beside + seconds, parts + 1
            return
        kind, work = job.kind if job.steps else _SCORED, self._work(job)
        others = math.fsum((self._mean(k) or 0.0) * n for k, n in work.items() if k != kind)
        before, count = self._sums.get(kind, (0.0, 0.0))
        self._sums[kind] = before + max(0.0, seconds - others), count + work[kind]
        if job.kind == "trial" and work[kind]:
            self._shortest = min(self._shortest, seconds / work[kind])
        if step_time and job.kind == "trial":
            beside, parts = self._beside
            self._beside = beside + max(0.0, seconds - step_time * _part(job)[1]), parts + 1

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Take the timings of an earlier process of this run."""
        for r in records:
            steps = max(map(int, r.rungs), default=0) if r.kind == "trial" else r.steps or 0
            job = TrainJob(
                r.job or "", r.kind, r.label, r.recipe, steps=steps, splits=tuple(r.scores) or ("select",)
            )
            if r.seconds and r.state not in ("failed", "interrupted", "duplicate"):
                self.finished(job, r.seconds, (r.measured or {}).get("step_time"))

    def _work(self, job: Job) -> dict[str, float]:
        """What a job does, by kind: full trainings of a hybrid, which are scored on *select*, and splits that
        are scored beside."""
        if not job.steps:
            return {_SCORED: _SCORING * len(job.splits)}
        steps = _part(job)[1] / self._full
        trained = job.recipe.get("layers") or [i for i in job.recipe.get("model") or () if i not in READINGS]
        work: dict[str, float] = {job.kind: steps if trained or job.kind == "trial" else _HEAD * steps}
        return {**work, _SCORED: _SCORING} if "test" in job.splits else work

    # Foretelling
    # ------------------------------------------------------------------------------------------------------

    @property
    def elapsed(self) -> float:
        """Seconds of the whole run."""
        return self._clock() - self._start

    def _mean(self, kind: str) -> float | None:
        """Seconds of a full training of a kind; `None` before the first job that could tell."""
        beside, parts = self._beside
        if kind == _SCORED and kind not in self._sums and parts:
            return beside / parts * self._test_share / _SCORING
        if kind == "baseline" and kind not in self._sums and math.isfinite(self._shortest):
            return self._shortest
        seconds, count = self._sums.get(kind) or self._sums.get("trial") or (0.0, 0.0)
        return seconds / count if count else None

    @property
    def _trial(self) -> float | None:
        """Seconds of a trial over all of its parts."""
        mean = self._mean("trial")
        return None if mean is None else mean * self._expected / self._full

    def seconds(self, jobs: Iterable[Job]) -> float:
        """What jobs take together, as far as that is known."""
        return math.fsum((self._mean(k) or 0.0) * n for job in jobs for k, n in self._work(job).items())

    def fits(self, jobs: Sequence[Job]) -> bool:
        """Whether jobs that a search can do without would end in time."""
        if self.limit is None or not jobs:
            return True
        return self.elapsed + self.seconds(jobs) / min(self.workers, len(jobs)) <= self.limit

    def allows(self, launched: int, running: int, planned: Sequence[Job], least: Sequence[Job]) -> bool:
        """Whether there is room for another trial and for what follows the search.

        Args:
            launched, running: trials so far, and jobs at the moment.
            planned, least: what follows in full, and in its shortest form.
        """
        if self.limit is None or launched < _AT_LEAST:
            return True
        trial = self._trial
        if trial is None:
            return self.elapsed < self.limit / 4
        own_half = self.elapsed + trial / 2 <= _SEARCH_SHARE * self.limit
        after = self.seconds(least if own_half else planned)
        return self.elapsed + ((running + 1) * trial + after) / self.workers <= self.limit

    def within(self, launched: int, job: Job, planned: Sequence[Job]) -> float | None:
        """Seconds after which a part of a trial is given up, so that what is planned after the search fits;
        no fewer than two trials take, or twice what is expected of the part: the last one may be longer than
        most trials are. `None` for the first two trials, and where nothing is known.

        Args:
            launched: trials so far, this one included.
        """
        trial = self._trial
        if self.limit is None or launched <= _AT_LEAST or trial is None:
            return None
        usual = 2 * max(trial, self.seconds([job]))
        return max(usual, self.limit - self.elapsed - self.seconds(planned) / self.workers)

    def shorten(self, forms: Iterable[Finals], jobs: Callable[[Finals], Sequence[Job]]) -> Finals:
        """The first of the finals that the time left allows, else the first of those of which least is left:
        what was trained before, as in an earlier process, costs nothing.

        Args:
            forms: shorter and shorter ones.
            jobs: that are left of some.
        """
        least: tuple[float, Finals] | None = None
        for form in forms:
            seconds = self.seconds(jobs(form))
            if self.limit is None or self.elapsed + seconds / self.workers <= self.limit:
                return form
            if least is None or seconds < least[0]:
                least = seconds, form
        assert least is not None  # there is one that is not shortened
        return least[1]

    def remaining(
        self,
        steps_left: float | None,
        running: Sequence[Job],
        planned: Sequence[Job],
        least: Sequence[Job],
    ) -> float | None:
        """Seconds left, or `None` before the first trial has ended.

        While the search goes on, the limit bounds them by what is left of it, or by the shortest finals where
        these take longer.

        Args:
            steps_left: the strategy's, `None` once the search itself has ended.
            planned, least: what follows in full, running jobs of it included, and in its shortest form.
        """
        trial = self._trial
        if trial is None:
            return None
        work = self.seconds(planned)
        if steps_left is not None:
            work += steps_left / self._expected * trial
        for job in running:
            seconds, (start, steps) = self.seconds([job]), _part(job)
            done = min(1.0, (self.steps.get(job.id, start) - start) / steps) if steps else 0.0
            if job.kind == "trial":
                # What goes on is in the expected steps already, what begins is not.
                work += seconds * (1.0 - done) - (seconds if steps_left is not None and start > 0 else 0.0)
            else:
                work -= seconds * done
        left = max(0.0, work) / self.workers
        if self.limit is not None and steps_left is not None:
            left = min(left, max(self.limit - self.elapsed, self.seconds(least) / self.workers))
        return left


def _part(job: Job) -> tuple[int, int]:
    """The first step of a job's training, and its number of steps."""
    if not isinstance(job, TrainJob):
        return 0, job.steps
    return job.start, (job.until or job.steps) - job.start

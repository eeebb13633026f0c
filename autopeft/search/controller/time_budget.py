"""How long a search will take, from the timings of its own jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from autopeft.effort import Effort
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, TrainJob
from autopeft.search.selection.finals import SCORED, SCORING, Finals, work_kind, work_of

__all__ = ["TimeBudget"]

_SEARCH_SHARE = 0.5
_AT_LEAST = 2  # trials
Left = Mapping[str, float]


class TimeBudget:
    """Time left and whether another trial still fits into the time budget, from the seconds of finished jobs.

    Work is counted in full trainings (see `work_of`), by kind of work. Where no job of a kind has finished,
    its trainings take as long as those of trials, of which a candidate of the strategy takes
    `expected_steps` on average. What only scores takes what trials took beside their steps.

    Half of the time budget is the search's; from then on a trial is refused when finalists and baselines
    would no longer fit. At least two trials are always allowed, and more only where the shortest finals would
    still fit. A trial that takes much longer than others is given up (`within`). Where even that leaves too
    little for the finals, `shorten` shortens them.
    """

    def __init__(
        self,
        effort: Effort,
        workers: int,
        seconds: float | None = None,
        *,
        expected_steps: float | None = None,
        test_share: float = 1.0,
        spent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers, self._budget, self._clock = max(workers, 1), seconds, clock
        self._full = effort.steps
        self._expected = float(effort.steps if expected_steps is None else expected_steps)
        self._start = clock() - spent  # what earlier processes of the run took counts
        self._steps: dict[str, int] = {}
        self._test_share = test_share
        self._sums: dict[str, tuple[float, float]] = {}
        self._beside = 0.0, 0
        self._left: dict[str, float] = {}
        self._least: Left = {}

    def expect(self, left: Left, least: Left) -> None:
        """Say what follows the search: trainings by kind of work, planned and at least."""
        self._left, self._least = dict(left), least

    def progress(self, job: str, step: int) -> None:
        """Note how far a running job is."""
        self._steps[job] = step

    def finished(self, job: Job, seconds: float, step_time: float | None = None) -> None:
        """Note how long a job took, and each of its steps."""
        work = self._work_of(job)
        self._time(work_kind(job), work, seconds)
        if step_time and job.kind == "trial":
            self._note_beside(seconds - step_time * _part(job)[1])
        self._steps.pop(job.id, None)
        for kind in work.keys() & self._left.keys():
            self._left[kind] = max(0.0, self._left[kind] - work[kind])

    def learn(self, records: Iterable[TrialRecord]) -> None:
        """Take the timings of an earlier process of this run."""
        for r in records:
            steps = max(map(int, r.rungs), default=0) if r.kind == "trial" else r.steps or 0
            work: Left = {"trial": steps / self._full}
            if r.kind != "trial":
                work = work_of(r.kind, r.recipe, steps, r.scores)
            if r.seconds and any(work.values()) and r.state not in ("failed", "interrupted"):
                self._time(r.kind if steps else SCORED, work, r.seconds)
                if r.kind == "trial" and (step_time := (r.measured or {}).get("step_time")):
                    self._note_beside(r.seconds - step_time * steps)

    def _time(self, kind: str, work: Left, seconds: float) -> None:
        """Note what work of a kind took; what came along with it of other kinds takes what is known."""
        along = self._seconds({other: count for other, count in work.items() if other != kind}) or 0.0
        before, count = self._sums.get(kind, (0.0, 0.0))
        self._sums[kind] = before + max(0.0, seconds - along), count + work[kind]

    def _note_beside(self, seconds: float) -> None:
        before, count = self._beside
        self._beside = before + max(0.0, seconds), count + 1

    def _work_of(self, job: Job) -> dict[str, float]:
        """Trainings of a job by kind of work; of a part of a trial its share of the steps."""
        if job.kind == "trial":
            return {"trial": _part(job)[1] / self._full}
        return work_of(job.kind, job.recipe, job.steps, job.splits)

    @property
    def _elapsed(self) -> float:
        return self._clock() - self._start

    def _training(self, kind: str) -> float | None:
        """Mean seconds of a training; `None` before the first job that could tell."""
        beside, trials = self._beside
        if kind == SCORED and kind not in self._sums and trials:
            return beside / trials * self._test_share / SCORING
        seconds, count = self._sums.get(kind) or self._sums.get("trial") or (0.0, 0.0)
        return seconds / count if count else None

    @property
    def _trial(self) -> float | None:
        """Mean seconds of a trial over all its parts."""
        training = self._training("trial")
        return None if training is None else training * self._expected / self._full

    def _seconds(self, left: Left) -> float | None:
        """Seconds of work in so many trainings of each kind, or `None` before the first trial has
        finished."""
        each = {kind: self._training(kind) for kind in left}
        if any(seconds is None for seconds in each.values()):
            return None
        return sum((each[kind] or 0.0) * count for kind, count in left.items())

    def allows(self, launched: int, running: int) -> bool:
        """Whether the time budget has room for another trial and all that follows."""
        if self._budget is None or launched < _AT_LEAST:
            return True
        elapsed = self._elapsed
        trial, after, least = self._trial, self._seconds(self._left), self._seconds(self._least)
        if trial is None or after is None or least is None:
            return elapsed < self._budget / 4
        trials = (running + 1) * trial
        if elapsed + trial / 2 <= _SEARCH_SHARE * self._budget:
            return elapsed + (trials + least) / self.workers <= self._budget
        return elapsed + (trials + after) / self.workers <= self._budget

    def within(self, launched: int, job: Job) -> float | None:
        """Seconds after which a part of a trial is given up, so that what is planned after the search fits;
        no fewer than two trials take, or twice what is expected of the part: the last one may be longer than
        most trials are. `None` for the first two trials, and where nothing is known.

        Args:
            launched: trials so far, this one included.
        """
        trial, after = self._trial, self._seconds(self._left)
        if self._budget is None or launched <= _AT_LEAST or trial is None or after is None:
            return None
        usual = 2 * max(trial, self._seconds_of(job))
        return max(usual, self._budget - self._elapsed - after / self.workers)

    def fits(self, jobs: Sequence[Job]) -> bool:
        """Whether jobs that a search can do without would end in time."""
        if self._budget is None or not jobs:
            return True
        together = math.fsum(self._seconds_of(job) for job in jobs) / min(self.workers, len(jobs))
        return self._elapsed + together <= self._budget

    def _seconds_of(self, job: Job) -> float:
        """What a job takes, as far as that is known."""
        return math.fsum((self._training(kind) or 0.0) * count for kind, count in self._work_of(job).items())

    def shorten(self, forms: Iterable[Finals], left: Callable[[Finals], Left]) -> Finals:
        """The first of the finals that the time left allows, else the first of those of which least is left:
        what was trained before, as in an earlier process, costs nothing. Without a time budget the first.

        Args:
            forms: shorter and shorter ones.
            left: what is left of some, trainings by kind of work.
        """
        least: tuple[float, Finals] | None = None
        for form in forms:
            work = self._seconds(left(form))
            if least is None or (work is not None and work < least[0]):
                least = work or 0.0, form
            if self._budget is None or work is None or self._elapsed + work / self.workers <= self._budget:
                least = work or 0.0, form
                break
        assert least is not None  # there is one that is not shortened
        self._left = dict(left(least[1]))
        return least[1]

    def remaining(self, steps_left: float | None, running: Sequence[Job]) -> float | None:
        """Seconds left, or `None` before the first trial has finished.

        While the search goes on, a time budget bounds them by what is left of it, or by the shortest finals
        where these take longer.

        Args:
            steps_left: the strategy's, `None` once the search itself has ended.
        """
        trial, after, least = self._trial, self._seconds(self._left), self._seconds(self._least)
        if trial is None or after is None or least is None:
            return None
        work = after
        if steps_left is not None:
            work += steps_left / self._expected * trial
        for job in running:
            seconds = self._seconds_of(job)
            start, steps = _part(job)
            done = min(1.0, (self._steps.get(job.id, start) - start) / steps) if steps else 0.0
            if job.kind == "trial":
                # What goes on is in the expected steps already, what begins is not.
                work += seconds * (1.0 - done) - (seconds if steps_left is not None and start > 0 else 0.0)
            else:
                work -= seconds * done
        left = max(0.0, work) / self.workers
        if self._budget is not None and steps_left is not None:
            left = min(left, max(self._budget - self._elapsed, least / self.workers))
        return left


def _part(job: Job) -> tuple[int, int]:
    """The first step of a job's training, and its number of steps."""
    if not isinstance(job, TrainJob):
        return 0, job.steps
    return job.start, (job.until or job.steps) - job.start

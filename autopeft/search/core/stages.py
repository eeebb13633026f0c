"""What a search consists of: stages. Each gives jobs and takes their results; the controller knows no more.

The probe of the precision, the strategy, each baseline, the finalists and the test of the winner are stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult

__all__ = ["Priority", "Room", "Stage"]


class Priority(IntEnum):
    """Which stage is asked for a job first."""

    PROBE = 0  # nothing else runs before it has ended
    FIRST = 1  # what tells how long other jobs take
    TRIALS = 2
    FINALISTS = 3
    AWAITED = 4  # baselines that the winner is chosen among
    OPTIONAL = 5  # what a search can do without, and the winner waits for
    TEST = 6
    IDLE = 7  # baselines that decide nothing, for workers that have nothing else to do


class Room(Protocol):
    """The time that is left."""

    def for_candidate(self) -> bool:
        """Whether one more candidate, and all that has to follow it, ends within the time limit."""
        ...

    def patience(self, job: Job) -> float | None:
        """Seconds after which a part of a trial is given up, `None` for never."""
        ...

    def fits(self, jobs: Sequence[Job]) -> bool:
        """Whether jobs that a search can do without, and the test of the winner, end within the time
        limit."""
        ...


class Stage(Protocol):
    """A part of a search. All calls come from one thread, one at a time."""

    @property
    def priority(self) -> Priority:
        """Of its next job."""
        ...

    def next(self, room: Room) -> Job | None:
        """The next job, or `None`: wait for results first, or nothing is left."""
        ...

    def done(self, job: Job, result: JobResult) -> None:
        """Take the result of a job of this stage. It comes once for every job; a job whose worker died was
        given out again before, twice at most. A result may have failed."""
        ...

    def updates(self) -> list[TrialRecord]:
        """Records that are new or have changed since the last call, in order; those in the state `paused`
        are shown and not stored."""
        ...

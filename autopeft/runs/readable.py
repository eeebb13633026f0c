"""What could be read of a file of many records, and how much of it could not."""

from __future__ import annotations

from dataclasses import dataclass

from autopeft.runs.records import FrontPoint, TrialRecord

__all__ = ["Points", "Records"]


@dataclass(frozen=True)
class Records:
    """The records of a file in its order, and how many of its lines were none."""

    file: str
    records: tuple[TrialRecord, ...] = ()
    damaged: int = 0

    @property
    def problem(self) -> str | None:
        """One sentence on what could not be read."""
        return _left_out(self.damaged, "line", "a record of a run", "records of a run", self.file)


@dataclass(frozen=True)
class Points:
    """The Pareto front by size, and how many points of its file were none."""

    points: tuple[FrontPoint, ...] = ()
    damaged: int = 0

    @property
    def problem(self) -> str | None:
        """One sentence on what could not be read."""
        return _left_out(self.damaged, "point", "complete", "complete", "front.json")


def _left_out(count: int, what: str, one: str, several: str, file: str) -> str | None:
    if not count:
        return None
    if count == 1:
        return f"One {what} of {file} is not {one}: it is left out."
    return f"{count:,} {what}s of {file} are not {several}: they are left out."

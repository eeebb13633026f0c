"""What a run folder holds, as far as it can be read. What cannot is named, and the rest is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from autopeft.errors import UsageError
from autopeft.runs.folder import RunFolder
from autopeft.runs.readable import Points, Records
from autopeft.runs.records import FrontPoint, TrialRecord

__all__ = ["Parts", "read_parts"]

T = TypeVar("T")
_MANIFEST = "manifest.json"  # what makes a folder a run


@dataclass(frozen=True)
class Parts:
    """The parts of a run; a missing file is an empty part and, but for the manifest, no problem.

    Attributes:
        manifest, result: `None` where there is none that can be read.
        problems: what could not be read, one sentence each.
    """

    manifest: dict[str, Any] | None
    result: dict[str, Any] | None
    trials: tuple[TrialRecord, ...]
    finals: tuple[TrialRecord, ...]
    front: tuple[FrontPoint, ...]
    problems: tuple[str, ...]


def read_parts(folder: RunFolder) -> Parts:
    """Read all parts of a run that can be read."""
    problems: list[str] = []

    def part(name: str, read: Callable[[], T]) -> T | None:
        try:
            return read() if name == _MANIFEST or os.path.lexists(folder.path / name) else None
        except UsageError as error:
            problems.append(str(error))
            return None

    manifest, result = part(_MANIFEST, folder.manifest), part("result.json", folder.result)
    trials = part("trials.jsonl", folder.trials) or Records("trials.jsonl")
    finals = part("finals.jsonl", folder.finals) or Records("finals.jsonl")
    front = part("front.json", folder.front) or Points()
    problems += [found.problem for found in (trials, finals, front) if found.problem]
    return Parts(manifest, result, trials.records, finals.records, front.points, tuple(problems))

"""The records of a run: one line for each finished piece of work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

__all__ = ["CountTable", "JobKind", "RecordState", "TrialRecord", "read_record", "read_records"]

JobKind = Literal["trial", "confirm", "baseline", "test"]
RecordState = Literal["complete", "stopped", "paused", "failed", "duplicate"]
CountTable = dict[str, int | float]


@dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class TrialRecord:
    """One finished piece of work, as it is written to `trials.jsonl` and `finals.jsonl`.

    Attributes:
        state: `complete`, `stopped` (at a rung, before all steps: never compared with full runs), `paused`
            (the same while it may still go on), `failed`, or `duplicate` (the score of an earlier trial was
            reused, nothing trained).
        job: the job's id, of runs after the search.
        score: on *select* after all steps.
        rungs: step to score on *select*, for each rung that a trial reached.
        steps: that were trained.
        hash: canonical hash of the recipe, training included.
        duplicate_of: number of the trial whose score was reused.
        values: the sampler's raw parameters, before repair.
        kept: the scores come from an earlier run, nothing was trained for this one.
    """

    kind: JobKind
    label: str
    state: RecordState
    recipe: Mapping[str, Any] = field(repr=False)
    number: int | None = None
    seed: int | None = None
    steps: int | None = None
    hash: str = ""
    counts: CountTable | None = None
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    train_loss: float | None = None
    error: str | None = None
    failure: str | None = None
    duplicate_of: int | None = None
    values: Mapping[str, Any] | None = field(default=None, repr=False)
    worker: str = ""
    rungs: Mapping[str, float] = field(default_factory=dict)
    job: str = ""
    kept: bool = False


_ADAPTER = TypeAdapter(TrialRecord)


def read_record(line: Mapping[str, Any]) -> TrialRecord:
    """A line of `trials.jsonl` or `finals.jsonl`. Keys that this version does not know are left out.

    Raises:
        ValueError: it is no record; the message names the first field that is wrong.
    """
    try:
        return _ADAPTER.validate_python(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "line"
        raise ValueError(f"no record of a run: {where}: {first['msg']}") from error


def read_records(lines: Iterable[Mapping[str, Any]]) -> tuple[list[TrialRecord], int]:
    """Every record of some lines, in order, and how many lines were none."""
    found, damaged = [], 0
    for line in lines:
        try:
            found.append(read_record(line))
        except ValueError:
            damaged += 1
    return found, damaged

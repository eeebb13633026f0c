"""The records of a run: one line for each finished piece of work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["CountTable", "JobKind", "RecordState", "TrialRecord"]

JobKind = Literal["trial", "confirm", "baseline", "test"]
RecordState = Literal["complete", "stopped", "paused", "failed", "duplicate"]
CountTable = dict[str, int | float]


@dataclass(frozen=True)
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

"""The weights of the best trial so far, kept so that no kill can part them from their record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from autopeft.runs.records import TrialRecord
from autopeft.search.core.checkpoints import CheckpointStore
from autopeft.search.core.jobs import Job, JobResult

__all__ = ["BestWeights"]

_PREFIX = "best-"


class BestWeights:
    """The weights of the best finished trial, in a store under `best-<number>`.

    A trial's weights are stored before its record is and older ones are let go of afterwards, so at every
    moment the best of the records has its weights there.

    Args:
        store: where they are kept; those of an earlier process are found there again.
        records: the trials of earlier processes.

    Attributes:
        number: of the trial whose weights are kept, or `None`.
        rank: what it is ranked by; -∞ where none is kept.
    """

    def __init__(self, store: CheckpointStore, records: Iterable[TrialRecord]) -> None:
        self._store = store
        self.number: int | None = None
        self.rank = -math.inf
        if any(key.startswith(_PREFIX) for key in store.keys()):  # noqa: SIM118 - a store is no mapping
            self.settle(records)

    def offer(self, job: Job, result: JobResult) -> None:
        """Store the weights of a trial that is about to be recorded, if they may be the best."""
        if job.number is None or result.error is not None or result.paused or not result.files:
            return
        if result.rank is not None and result.rank > self.rank:
            self._store.put(f"{_PREFIX}{job.number}", result.files)

    def settle(self, records: Iterable[TrialRecord]) -> None:
        """Keep the weights of the best complete trial that has some, and let go of the others."""
        kept = {key for key in self._store.keys() if key.startswith(_PREFIX)}  # noqa: SIM118
        if kept == {f"{_PREFIX}{self.number}"}:
            return
        scored = [
            (record.rank, -record.number)
            for record in records
            if record.state in ("complete", "estimated")
            and record.rank is not None
            and record.number is not None
            if f"{_PREFIX}{record.number}" in kept
        ]
        self.rank, self.number = -math.inf, None
        if scored:
            self.rank, negative = max(scored)
            self.number = -negative
        for key in kept - {f"{_PREFIX}{self.number}"}:
            self._store.drop(key)

    def files(self) -> Mapping[str, bytes] | None:
        """The weights, or `None`."""
        return None if self.number is None else self._store.get(f"{_PREFIX}{self.number}")

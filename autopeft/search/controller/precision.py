"""The precision of a search's trainings; that of trials may be found first by a probe on a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.core.stages import Priority, Room
from autopeft.search.planning.probes import (
    PrecisionFinding,
    final_precision,
    kept_precision,
    known_precision,
    probe_job,
)

__all__ = ["PrecisionStage"]


class PrecisionStage:
    """The stage that finds what trials and sweeps compute in, and all else.

    Args:
        asked: `fp32`, `bf16`, or `auto` for what a probe finds.
        parameters: of the backbone; a small one is not probed.
        seed: of the probe.
        folder: of the run, where the finding is kept, so that a search that goes on keeps to it; `None` to
            keep nothing.
        notify: is told what was found.
        final: of all that is scored on *test* (see `final_precision`).
        found: what the probe found already, and what was told then (see `precision_of_finals`).

    Attributes:
        value: `fp32` or `bf16`; `None` until the probe has ended.
    """

    def __init__(
        self,
        asked: str = "fp32",
        *,
        parameters: int = 0,
        seed: int = 0,
        folder: Path | None = None,
        notify: Callable[[str], None] | None = None,
        final: str = "fp32",
        found: PrecisionFinding | None = None,
    ) -> None:
        self._folder, self._notify, self._seed = folder, notify, seed
        self._final, self._parameters = final, parameters
        self.value = known_precision(asked, parameters)
        if self.value is None and folder is not None:
            self.value = kept_precision(folder)
        if self.value is None and found is not None:
            self._keep(found)

    @property
    def final(self) -> str:
        """`fp32` or `bf16`, of all that is scored on *test*."""
        return final_precision(self._final, self.value, self._parameters)

    priority = Priority.PROBE

    def next(self, room: Room) -> Job | None:
        """See `Stage`: the probe, where the precision is open."""
        return probe_job(self._seed) if self.value is None else None

    def done(self, job: Job, result: JobResult) -> None:
        """See `Stage`; where the probe failed, fp32 is the choice."""
        if result.failure != "stopped":
            told = self._keep(PrecisionFinding.of(result))
            if self._notify is not None:
                self._notify(told)

    def updates(self) -> list[TrialRecord]:
        """See `Stage`: a probe leaves no record."""
        return []

    def _keep(self, found: PrecisionFinding) -> str:
        """Choose and keep what was found; returns what there is to tell of it."""
        self.value, told = found.precision, found.why
        if self.value != self.final:
            told += f" Finalists and baselines are trained in {self.final}."
        if self._folder is not None:
            found.write(self._folder, told)
        return told

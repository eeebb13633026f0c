"""Final runs that need not be repeated: those of an earlier process, and baselines of earlier searches."""

from __future__ import annotations

from autopeft.runs.files import cut_torn_line
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.controller.checkpoints import FolderCheckpoints
from autopeft.search.core.jobs import Job, JobResult, TrainJob
from autopeft.search.selection.baseline_cache import BaselineCache, KeptScores, RunKeys

__all__ = ["KnownRuns"]

_TIMES = ("step_time", "latency")


class KnownRuns:
    """What need not be run again: final runs of an earlier process, and baselines of earlier searches.

    A finalist's run counts as done while its weights are there: they may have to be tested.

    Args:
        rank_by: what this search's recipes are ranked by (see `Job`).
        place: the machine and how many of its processors a job has; what was measured elsewhere is no measure
            of time here. Empty where jobs run on several machines.

    Attributes:
        past: job to its last record in `finals.jsonl`, of those that were complete.
    """

    def __init__(
        self,
        folder: RunFolder,
        checkpoints: FolderCheckpoints,
        keys: RunKeys,
        cache: BaselineCache,
        rank_by: str,
        place: str = "",
    ) -> None:
        self._checkpoints, self._keys, self._cache = checkpoints, keys, cache
        self._rank_by, self._place = rank_by, place
        cut_torn_line(folder.path / "finals.jsonl")
        found = folder.finals()
        whole = [r for r in found.records if r.state == "complete" and r.job and r.scores]
        self.past = {record.job: record for record in whole}
        if found.records or found.damaged:
            # Without what will be run again.
            folder.write_lines("finals.jsonl", list(self.past.values()))

    def recall(self, job: Job) -> JobResult | None:
        """The result of a job, if it is known."""
        past = self.past.get(job.id)
        # What a baseline offers may differ where another version of the package goes on.
        if (
            past is not None
            and all(split in past.scores for split in job.splits)
            and (past.recipe, past.seed, past.steps) == (job.recipe, job.seed, job.steps)
            and (job.kind != "confirm" or self._checkpoints.get(job.id) is not None)
        ):
            return _as_result(past)
        if job.kind != "baseline" or not isinstance(job, TrainJob):
            return None
        key = self._keys.of(job.recipe, job.seed, job.steps, job.precision, job.rank_by, metric=job.metric)
        kept = self._cache.get(key)
        if kept is None or any(split not in kept.scores for split in job.splits):
            return None
        here = bool(self._place) and kept.place == self._place
        return JobResult(
            job.id,
            {split: kept.scores[split] for split in job.splits},
            counts=kept.counts,
            by_task=kept.by_task,
            pseudo_values=kept.pseudo_values if "test" in job.splits else (),
            select_values=kept.select_values,
            merit=kept.merit,
            metric=job.metric,
            measured={k: v for k, v in kept.measured.items() if here or k not in _TIMES},
        )

    def remember(self, record: TrialRecord) -> None:
        """Keep the scores of a baseline's run for other searches."""
        # What was not trained is scored anew: examples are no part of a key.
        if record.kind == "baseline" and record.state == "complete" and not record.kept and record.steps:
            key = self._keys.of(
                record.recipe,
                record.seed or 0,
                record.steps or 0,
                record.precision,
                self._rank_by,
                metric=record.metric,
            )
            parts = tuple(record.pseudo_values or ()), tuple(record.select_values or ())
            merit, took = record.merits.get(str(record.steps)), record.measured or {}
            kept = KeptScores(record.scores, *parts, merit, took, self._place, record.counts, record.by_task)
            self._cache.put(key, kept, record.seconds)


def _as_result(record: TrialRecord) -> JobResult:
    return JobResult(
        record.job,
        dict(record.scores),
        seconds=record.seconds,
        train_loss=record.train_loss,
        counts=record.counts,
        worker=record.worker,
        pseudo_values=tuple(record.pseudo_values or ()),
        select_values=tuple(record.select_values or ()),
        measured=record.measured or {},
        merit=record.merits.get(str(record.steps)),
        metric=record.metric,
        samples=tuple(record.samples or ()),
        by_task=record.by_task,
    )

"""What a running search keeps on disk beside its journal, so that another process can go on with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import UsageError
from autopeft.runs.files import write_atomic
from autopeft.runs.folder import RunFolder
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.selection.baseline_cache import BaselineCache, RunKeys

__all__ = ["Clock", "CompletedRuns", "FolderCheckpoints", "KnownRuns"]


class FolderCheckpoints:
    """Saved hybrids and checkpoints as files, a folder for each key."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Replace what is held under `key`."""
        target, new = self._folder / key, self._folder / f".{key}-new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, data in files.items():
            write_atomic(new / Path(name).name, data)
        self.drop(key)
        new.rename(target)

    def get(self, key: str) -> Mapping[str, bytes] | None:
        """What is held under `key`."""
        target = self._folder / key
        return {p.name: p.read_bytes() for p in sorted(target.iterdir())} if target.is_dir() else None

    def drop(self, key: str) -> None:
        """Hold nothing under `key`."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

    @property
    def size(self) -> int:
        """Bytes of everything that is held."""
        return sum(p.stat().st_size for p in self._folder.glob("*/*"))


class CompletedRuns:
    """Final runs of an earlier process, by job, from `finals.jsonl`.

    A finalist's run counts as done while its weights are there: they may have to be tested.
    """

    def __init__(self, folder: RunFolder, checkpoints: FolderCheckpoints) -> None:
        self._checkpoints = checkpoints
        self._done: dict[str, JobResult] = {}
        lines = folder.lines("finals.jsonl")
        for line in lines:
            result = _as_result(line)
            if result is not None:
                self._done[result.job] = result
        if lines:
            # Without a torn last line, and without what will be run again.
            kept = [line for line in lines if line.get("job") in self._done]
            folder.write_lines("finals.jsonl", kept)

    def get(self, job: Job) -> JobResult | None:
        """What came of the job, if that is known."""
        found = self._done.get(job.id)
        if found is None or any(split not in found.scores for split in job.splits):
            return None
        if job.kind == "confirm":
            files = self._checkpoints.get(job.id)
            return None if files is None else found
        return found

    def __contains__(self, job: str) -> bool:
        return job in self._done


class KnownRuns:
    """What need not be run again: final runs of an earlier process, and baselines of earlier searches."""

    def __init__(self, past: CompletedRuns, keys: RunKeys, cache: BaselineCache) -> None:
        self._past, self._keys, self._cache = past, keys, cache

    def recall(self, job: Job) -> JobResult | None:
        """What came of a job, if that is known."""
        found = self._past.get(job)
        if found is not None or job.kind != "baseline":
            return found
        scores = self._cache.get(self._keys.of(job.recipe, job.seed, job.steps))
        if scores is None or any(split not in scores for split in job.splits):
            return None
        return JobResult(job.id, {split: scores[split] for split in job.splits})

    def remember(self, record: TrialRecord) -> None:
        """Keep the scores of a baseline's run for other searches."""
        if record.kind == "baseline" and record.state == "complete" and not record.kept:
            key = self._keys.of(record.recipe, record.seed or 0, record.steps or 0)
            self._cache.put(key, record.scores, record.seconds)


def _as_result(line: Mapping[str, Any]) -> JobResult | None:
    job, scores = line.get("job"), line.get("scores")
    if line.get("state") != "complete" or not isinstance(job, str) or not isinstance(scores, dict):
        return None
    if not job or not all(isinstance(v, (int, float)) for v in scores.values()):
        return None
    counts = line.get("counts")
    return JobResult(
        job,
        {str(k): float(v) for k, v in scores.items()},
        seconds=float(line.get("seconds") or 0.0),
        train_loss=line.get("train_loss"),
        counts=counts if isinstance(counts, dict) else None,
        worker=str(line.get("worker", "")),
    )


class Clock:
    """Seconds that a run has taken over all of its processes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.before = 0.0
        if file.exists():
            try:
                self.before = max(0.0, float(json.loads(file.read_text(encoding="utf-8"))["seconds"]))
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{str(file)!r} does not hold seconds; remove it.") from error

    def write(self, seconds: float) -> None:
        """Note the seconds of this process."""
        write_atomic(self._file, json.dumps({"seconds": self.before + seconds}) + "\n")

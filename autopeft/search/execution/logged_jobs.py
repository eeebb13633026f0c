"""What is kept of every job in the run folder: its definition before it runs, and a log when it has ended.

```
logs/
  jobs.jsonl      every job as it was handed out: all that is needed to run it again
  trial-3.txt     how a job ended: error and traceback, process, versions, peak memory, what was printed
  ray/            Ray's own logs, where it ended unexpectedly
```
A log has at most 1 MB, and 16 kB once all have 100 MB. Of jobs that went well the newest 1,000 are kept; the
others all are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from autopeft.errors import AutoPEFTError, UsageError
from autopeft.foreign import parse_json
from autopeft.runs.files import cut_torn_line, make_folder
from autopeft.runs.folder import RunFolder
from autopeft.search.core.jobs import Done, Job, JobResult, JobSource, TrainJob
from autopeft.search.execution.job_log import last_step
from autopeft.tasks import SPLIT_NAMES

__all__ = ["JOBS", "HandedOut", "LoggedJobs", "digests", "handed_out", "log_file"]

JOBS = "logs/jobs.jsonl"
_MOST, _LITTLE, _ROOM = 1_000_000, 16_000, 100_000_000
_KEPT = 1_000
_MOST_ATTEMPTS = 1_000
_log = logging.getLogger("autopeft")
_RULE = "\n" + "-" * 110 + "\n"
_WENT_WELL = re.compile(r"[^:]+: (complete|paused)")


def log_file(folder: RunFolder, job: str) -> Path:
    """Where the log of a job is."""
    return folder.logs / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', job)}.txt"


class LoggedJobs:
    """A `JobSource` that passes everything on to another, and keeps what is worth keeping of it.

    Raises:
        AutoPEFTError: the run folder cannot be written.
    """

    def __init__(self, source: JobSource, folder: RunFolder) -> None:
        self._source, self._folder = source, folder
        self._open: dict[str, tuple[Job, int, float]] = {}
        make_folder(folder.logs)
        try:
            logs = sorted(folder.logs.glob("*.txt"), key=lambda path: path.stat().st_mtime_ns)
            self._bytes = sum(path.stat().st_size for path in logs)
            self._well = deque(path for path in logs if _went_well(path))
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(folder.logs)!r}: {error.strerror}.") from error
        cut_torn_line(folder.path / JOBS)

    def next(self) -> Job | Done | None:
        """See `JobSource`."""
        job = self._source.next()
        if isinstance(job, Job):
            self._open[job.id] = (job, 0, float("nan"))
            told = {"type": type(job).__name__, **{f.name: getattr(job, f.name) for f in fields(job)}}
            if told.get("keep_above") is not None:
                told["keep_above"] = repr(told["keep_above"])  # JSON has no infinity
            told["files"] = digests(job.files) or None
            self._folder.append_line(JOBS, {**told, "at": _now()})
        return job

    def progress(self, job: str, step: int, loss: float) -> None:
        """See `JobSource`."""
        if job in self._open:
            self._open[job] = (self._open[job][0], step, loss)
        self._source.progress(job, step, loss)

    def complete(self, result: JobResult) -> None:
        """See `JobSource`. The log is written also where the source cannot take the result."""
        job, *_ = self._open.pop(result.job, (None,))
        try:
            self._source.complete(result)
        finally:
            if job is not None:
                self._write(job, result)

    def interrupt(self) -> None:
        """See `JobSource`."""
        self._source.interrupt()

    def scale(self, workers: int) -> None:
        """See `JobSource`."""
        self._source.scale(workers)

    @property
    def stopped(self) -> bool:
        """See `JobSource`."""
        return self._source.stopped

    def close(self) -> None:
        """Write a log for each job that still ran when the executor ended."""
        for job, step, loss in self._open.values():
            error = "The search ended while this ran."
            self._write(job, JobResult(job.id, error=error, failure="stopped", log=last_step(step, loss)))
        self._open.clear()

    def _write(self, job: Job, result: JobResult) -> None:
        """Write the log of a job that has ended; its first line says how."""
        state = "paused" if result.paused else "complete"
        if result.error is not None:
            state = str(result.failure or "failed")
        again = f" (attempt {job.attempt + 1})" if job.attempt else ""
        length = f"{job.steps} steps" if job.steps else "no training"
        if isinstance(job, TrainJob):
            until = "" if job.until is None else f" up to step {job.until}"
            share = "" if job.share == 1.0 else f" on {job.share:.3g} of the rows"
            length = f"{job.steps} steps{until}{share}"
        lines = [
            f"{job.id}{again}: {state}",
            f"ended: {_now()}, after {result.seconds:.1f} s",
            f"job: {job.label}",
            f"seed {job.seed}, {length}, splits {', '.join(job.splits)}",
            f"recipe: {json.dumps(job.recipe, ensure_ascii=False, default=str)}",
        ]
        if result.error is not None:
            lines.append(f"error: {result.error}")
        else:
            scores = ", ".join(f"{split} {score:.6g}" for split, score in result.scores.items())
            loss = "none" if result.train_loss is None else f"{result.train_loss:.6g}"
            lines.append(f"scores: {scores}; train loss {loss}")
        if result.worker:
            lines.append(f"worker: {result.worker}")
        text = "\n".join(lines) + f"\n{result.log}".rstrip() + "\n"
        result.log = ""  # it is on disk, and results are kept for long

        # Without its middle, where it is too long: both its begin and its end tell something.
        most = _MOST if self._bytes < _ROOM else _LITTLE
        if (left_out := len(text) - most) > 0:
            head, tail = text[: most // 3], text[most // 3 + left_out :]
            text = f"{head}\n[… {left_out:,} characters are left out here …]\n{tail}"

        path = log_file(self._folder, job.id)
        try:
            before = path.stat().st_size if path.exists() else 0
            if before:
                # A job that was lost, or went on after a pause, has one log for all of its runs.
                old = path.read_text(encoding="utf-8", errors="replace")
                text = old[-max(1, _MOST - len(text)) :] + _RULE + text
            path.write_text(text, encoding="utf-8", errors="replace")
            self._bytes += path.stat().st_size - before
            if not before and _went_well(path):
                self._well.append(path)
            while len(self._well) > _KEPT:  # the oldest logs of jobs that went well are removed
                oldest = self._well.popleft()
                if oldest.exists() and _went_well(oldest):
                    self._bytes -= oldest.stat().st_size
                    oldest.unlink()
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


class HandedOut:
    """A job as it was handed out.

    Attributes:
        job: without the files that it carried.
        carried: name to SHA-256 of those files: the checkpoint of a paused trial, or a saved hybrid.
        at: when, as ISO 8601.
    """

    def __init__(self, line: Mapping[str, Any]) -> None:
        try:
            type_ = _job_type(str(line["type"]))
            names = [f.name for f in fields(type_) if f.name != "files"]
            told = {name: line[name] for name in names}
            if told.get("keep_above") is not None:
                # JSON has no infinity, which stands for "keep them whatever the score".
                told["keep_above"] = float(told["keep_above"])
            # As JSON, in which a tuple is a list.
            found = _checked(cast(Any, type_)).validate_json(json.dumps(told))
            told = {name: getattr(found, name) for name in told}
            _check_figures(told)
            self.job = type_(**told)
            carried = line["files"] or {}
            self.carried: dict[str, str] = {str(k): str(v) for k, v in carried.items()}
            self.at = str(line["at"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"does not hold a job: {what}.") from error


def _check_figures(told: Mapping[str, Any]) -> None:
    """Check what a job says beside its types.

    Raises:
        ValueError: something is beyond what any job has.
    """
    for name, most in (("seed", 2**63 - 1), ("attempt", _MOST_ATTEMPTS)):
        if not 0 <= told[name] <= most:
            raise ValueError(f"its {name} is not from 0 to {most:,}")
    unknown = [split for split in told["splits"] if split not in SPLIT_NAMES]
    if unknown:
        raise ValueError(f"it scores the split {unknown[0]!r:.80}, but there are {', '.join(SPLIT_NAMES)}")


def _job_type(name: str) -> type[Job]:
    """The type of job with this name, among those that are loaded; nothing is imported for a name in a file.

    Raises:
        ValueError: there is none.
    """
    found = [Job]
    for known in found:
        found += known.__subclasses__()
    for known in found:
        if known.__name__ == name:
            return known
    raise ValueError(
        f"no type of job {name!r} is known here; it may belong to a package that is not installed"
    )


@cache
def _checked(type_: Any) -> TypeAdapter[Any]:
    """What checks the types of a type of jobs' fields."""
    checking = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=True)
    return TypeAdapter(checked_dataclass(type_, frozen=True, config=checking))


def handed_out(folder: RunFolder) -> list[HandedOut]:
    """Every job of a run, in the order in which they were handed out. Lines that hold none are told by a
    warning.

    Raises:
        UsageError: the run has kept none, or none can be read.
    """
    found: list[HandedOut] = []
    damaged: list[str] = []
    for number, line in enumerate(folder.raw_lines(JOBS), start=1):
        try:
            told = parse_json(line)
            if not isinstance(told, dict):
                raise UsageError("is not a table.")
            found.append(HandedOut(told))
        except (UsageError, ValueError) as error:
            damaged.append(f"Line {number} of {str(folder.path / JOBS)!r}: {error}")
    if damaged and not found:
        raise UsageError(damaged[0])
    if not found:
        raise UsageError(f"{str(folder.path)!r} has no {JOBS}, which tells what its jobs were.")
    if damaged:
        more = f" So are {len(damaged) - 1} more." if len(damaged) > 1 else ""
        _log.warning("A job is left out. %s%s", damaged[0], more)
    return found


def digests(files: Mapping[str, bytes] | None) -> dict[str, str]:
    """Name to SHA-256 of files."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in (files or {}).items()}


def _went_well(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return _WENT_WELL.match(file.readline(1000)) is not None


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")

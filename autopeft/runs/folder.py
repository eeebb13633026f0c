"""The run folder: everything a search leaves behind, written atomically and read with care.

```
runs/2026-01-31-142233-sst2-1a2b3c/
  manifest.json   versions, seeds, data source and hash, arguments, backbone, budget in parameters
  journal.log     the Optuna journal: the one source of truth of the search
  trials.jsonl    every finished trial: recipe, counts, scores, seconds, error
  finals.jsonl    the runs after the search: finalists and baselines with fresh seeds, tests
  recipe.yaml     the winner's recipe        front.csv, front.json   size against score
  result.json     the outcome in numbers     winner/                 the winner's weights, head included
  space.yaml      the search space           .state/                 until the end: what it can go on from
  precision.json  fp32 or bf16 for trials, and what was measured
  logs/jobs.jsonl every job as it was handed out: recipe, seed, steps, splits, hashes of the files it carried
  logs/<job>.txt  how each job ended: error and traceback, process, versions, peak memory, what was printed
  logs/ray/       Ray's own logs, only where it ended unexpectedly or the search raised an error
```
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from autopeft.errors import AutoPEFTError, UsageError, near
from autopeft.foreign import file_in, local_path, parse_json, read_json_in, read_table_in
from autopeft.runs.documents import read_manifest, read_result
from autopeft.runs.files import empty_folder, json_bytes, write_atomic, write_json
from autopeft.runs.records import (
    FrontPoint,
    Points,
    Records,
    TrialRecord,
    left_out,
    read_point,
    read_record,
)

__all__ = [
    "GATES",
    "Parts",
    "RunFolder",
    "as_typed",
    "go_on",
    "list_runs",
    "load_run",
    "no_runs",
    "read_parts",
    "why_not_here",
]

GATES = "gates.jsonl"
"""What gates learnt, a line for each training of the strategy `gates`."""
_MAX_LINE = 4 << 20
_MAX_LINES = 1_000_000
_MAX_FILE = 256 << 20
_NEEDED = 100 << 20
_LOCK_SECONDS = 0.5
_LOCK = ".lock"
_MANIFEST = "manifest.json"  # what makes a folder a run
_log = logging.getLogger("autopeft")


def as_typed(path: str | Path) -> str:
    """A path as one would type it here: short where it lies below this folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative


def why_not_here(run: str | Path, what: str, name: str) -> str | None:
    """Why the file or folder that a run was begun with is not found; `None` where it is there.

    Args:
        what: `backbone` or `data`, for the sentence.
        name: as it was typed then; a relative path means another folder wherever one stands.
    """
    path = local_path(name)
    if os.path.exists(path):
        return None
    begun = f"{str(run)!r} was begun with the {what} {name!r}"
    if path.is_absolute():
        return f"{begun}, and nothing is there any more"
    return f"{begun}, a path from the folder that it was begun in, and there is no such one from {Path.cwd()}"


def go_on(run: Path, words: Sequence[str] = ()) -> str:
    """How to resume a search: the command, or the call in Python where its rows lay in memory.

    Args:
        words: further options of the command.
    """
    try:
        task = RunFolder(run).manifest().get("arguments", {}).get("task")
    except (UsageError, AttributeError):
        task = None
    if isinstance(task, Mapping):
        return f"autopeft.search(resume={as_typed(run)!r}, task=rows), with the same rows"
    return shlex.join(["autopeft", "search", "--resume", as_typed(run), *words])


def no_runs(root: Path | str) -> str:
    """A sentence where there is no run yet, and what makes one."""
    words = ["autopeft", "search", "--task", "sst2", "--budget", "0.5%"]
    words += [] if Path(root) == Path("runs") else ["--out", str(Path(root) / "first")]
    return f"There is no run under {str(root)!r} yet; `{shlex.join(words)}` makes one."


class RunFolder:
    """One run on disk. Make a new one with `create`, open a finished one with `load_run`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.journal = path / "journal.log"
        self.winner = path / "winner"  # the winner's weights
        self.logs = path / "logs"  # what the jobs have left to look at
        self.scratch = path / ".scratch"  # what only a running search needs
        self.state = (
            path / ".state"
        )  # what is needed to go on: checkpoints, weights of finalists, seconds spent
        self._lock = path / _LOCK
        self._made = False

    @classmethod
    def create(
        cls, task: str, key: str, *, root: Path | str = "runs", out: Path | str | None = None
    ) -> RunFolder:
        """Make `root/<date-time>-<task>-<key>`, or `out`, which must be new or empty.

        Raises:
            UsageError: `out` holds something already, or is no path.
            AutoPEFTError: the folder cannot be made, or the disk has less than 100 MB left.
        """
        slug = (
            re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task).stem if os.sep in task else task).strip("-.")[:40]
            or "task"
        )
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        path = local_path(out) if out is not None else local_path(root) / f"{stamp}-{slug}-{key[:6]}"
        # The lock of a process that was killed before it had written anything is nothing.
        path = empty_folder(Path(os.path.abspath(path)), "--out", besides=(_LOCK,))
        try:
            made = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
        except OSError as error:
            raise AutoPEFTError(f"Cannot make the run folder {str(path)!r}: {error.strerror}.") from error
        if free < _NEEDED:
            raise AutoPEFTError(
                f"{str(path)!r} lies on a disk with {free >> 20} MB left; a run needs {_NEEDED >> 20} MB."
            )
        run = cls(path)
        run._made = made
        return run

    def discard(self) -> None:
        """Remove a run that has come to nothing, so that no command finds it; Ray's own logs stay.

        An empty folder that was there before `create` stays too.
        """
        for path in self.path.iterdir():
            if path == self.logs and (self.logs / "ray").is_dir():
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if self._made and not any(self.path.iterdir()):
            self.path.rmdir()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        Raises:
            UsageError: another process holds it.
        """
        lock = FileLock(str(self._lock))
        try:
            # `running` may hold it at this very moment.
            lock.acquire(timeout=_LOCK_SECONDS, poll_interval=_LOCK_SECONDS / 10)
        except Timeout as error:
            raise UsageError(
                f"Another search is running in {str(self.path)!r}; wait until it has ended."
            ) from error
        except OSError as error:
            raise AutoPEFTError(f"Cannot lock {str(self.path)!r}: {error.strerror}.") from error
        try:
            yield
        finally:
            # While it is held: whoever waits for this very file finds that it is gone, and makes another.
            # After a release one could take it, and would hold a file that nobody else finds any more.
            with suppress(OSError):  # the folder is gone or read-only; the lock goes with the process
                self._lock.unlink()
            lock.release()

    @property
    def running(self) -> bool:
        """Whether a process holds the run: it works on it at this moment."""
        try:
            # Whatever else lies there is no lock: a link is not followed, a pipe not waited for.
            descriptor = os.open(self._lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            # As `FileLock` does it. A process that ended, however it did, holds nothing.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False  # a file system without locks does not tell
        finally:
            os.close(descriptor)
        return False

    def write_json(self, name: str, value: Any) -> None:
        """Write `name` atomically as strict JSON."""
        write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write `name` atomically."""
        write_atomic(self.path / name, text)

    def append_line(self, name: str, value: Any) -> None:
        """Append one JSON line to `name` and flush it to disk.

        Raises:
            AutoPEFTError: the disk is full, or the folder is read-only or gone.
        """
        line = json_bytes(value)
        try:
            with (self.path / name).open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(self.path / name)!r}: {error.strerror}.") from error

    def write_lines(self, name: str, values: list[Any]) -> None:
        """Write `name` atomically as JSON lines."""
        write_atomic(self.path / name, b"".join(map(json_bytes, values)))

    def write_winner(self, files: Mapping[str, bytes]) -> None:
        """Replace the winner's folder by these files (plain file names)."""
        new, old = self.path / ".winner-new", self.path / ".winner-old"
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            new.mkdir()
            for name, data in files.items():
                if Path(name).name != name:
                    raise AutoPEFTError(f"A saved hybrid holds plain files, but one is named {name!r}.")
                write_atomic(new / name, data)
            if self.winner.exists():
                self.winner.rename(old)
            new.rename(self.winner)
        except OSError as error:
            raise AutoPEFTError(f"Cannot write {str(self.winner)!r}: {error.strerror}.") from error
        shutil.rmtree(old, ignore_errors=True)

    def manifest(self) -> dict[str, Any]:
        """The manifest: versions, seeds, arguments, data and backbone of the run."""
        self._check_there(_MANIFEST)
        return read_table_in(self.path, _MANIFEST)

    @property
    def exported(self) -> bool:
        """Whether it is an export: its manifest holds the result, for which a run has a file of its own."""
        with suppress(UsageError):
            return "result" in self.manifest()
        return False

    def result(self) -> dict[str, Any]:
        """The outcome in numbers.

        Raises:
            UsageError: the run has no result (yet).
        """
        self._check_there("result.json")
        return read_table_in(self.path, "result.json")

    def _check_there(self, name: str) -> None:
        if file_in(self.path, name) is None:
            raise UsageError(f"{str(self.path)!r} has no {name}: this run did not come that far.")

    def front(self) -> Points:
        """The Pareto front, by size.

        Raises:
            UsageError: there is none (yet), or it is no list.
        """
        self._check_there("front.json")
        value = read_json_in(self.path, "front.json")
        if not isinstance(value, list):
            raise UsageError(f"{str(self.path / 'front.json')!r} does not hold a list.")
        points: list[FrontPoint] = []
        for line in value:
            try:
                points.append(read_point(line))
            except ValueError:
                continue
        damaged = len(value) - len(points)
        return Points(tuple(points), left_out(damaged, "point", "complete", "complete", "front.json"))

    def trials(self) -> Records:
        """Every finished trial (`trials.jsonl`); none where there is no file. A torn last line is left out.

        Raises:
            UsageError: a line is too long, or there are too many.
        """
        return self._records("trials.jsonl")

    def finals(self) -> Records:
        """The runs after the search (`finals.jsonl`); else as `trials`."""
        return self._records("finals.jsonl")

    def _records(self, name: str) -> Records:
        records: list[TrialRecord] = []
        damaged = 0
        for line in self.raw_lines(name):
            try:
                records.append(read_record(parse_json(line)))
            except ValueError:
                damaged += 1
        problem = left_out(damaged, "line", "a record of a run", "records of a run", name)
        return Records(tuple(records), damaged, problem)

    def lines(self, name: str = "trials.jsonl") -> list[dict[str, Any]]:
        """The tables of a JSON-lines file as they stand; empty where it does not exist. A torn last line is
        left out.

        Raises:
            UsageError: a line is too long or not a JSON table, or there are too many.
        """
        found: list[dict[str, Any]] = []
        for number, line in enumerate(self.raw_lines(name), start=1):
            where = f"Line {number} of {str(self.path / name)!r}"
            try:
                value = parse_json(line)
            except ValueError as error:
                raise UsageError(f"{where} is not JSON: {error}.") from error
            if not isinstance(value, dict):
                raise UsageError(f"{where} is not a table.")
            found.append(value)
        return found

    def raw_lines(self, name: str) -> Iterator[bytes]:
        """The lines of a file as they stand, but for a torn last one; none where there is no file.

        Raises:
            UsageError: it cannot be read, a line is too long, or there are too many.
        """
        path = file_in(self.path, name)
        if path is None:
            return
        count = 0
        try:
            with path.open("rb") as file:
                while line := file.readline(_MAX_LINE + 1):
                    if not line.endswith(b"\n") and len(line) <= _MAX_LINE:
                        break
                    if len(line) > _MAX_LINE or count >= _MAX_LINES or file.tell() > _MAX_FILE:
                        raise UsageError(
                            f"{str(path)!r} is too large: a line, the number of lines or the bytes are over "
                            "the limit."
                        )
                    count += 1
                    yield line
        except OSError as error:
            raise UsageError(f"{str(path)!r} cannot be read: {error.strerror}.") from error

    def summary(self) -> dict[str, Any]:
        """One row for a list of runs: name, task, budget, state, and scores where there are any.

        A run whose manifest or result cannot be read is `damaged`; `problem` then says why.
        """
        row: dict[str, Any] = {"run": self.name, "path": str(self.path), "state": "unfinished"}
        try:
            manifest = read_manifest(self.manifest())
            row.update({k: getattr(manifest, k) for k in ("created", "task", "model", "budget", "space")})
            if self.exported:
                row["state"] = "exported"
            elif (self.path / "result.json").exists():
                result = read_result(self.result())
                row["state"] = "interrupted" if result.interrupted else "finished"
                row.update({k: getattr(result, k) for k in ("metric", "select_mean", "test_mean", "test_sd")})
                row["share"] = result.counts.share
        except UsageError as error:
            return {**row, "state": "damaged", "problem": str(error)}
        if self.running:
            row["state"] = "running"
        return row


def list_runs(root: Path | str = "runs") -> list[RunFolder]:
    """Runs under `root`, newest first, also those that cannot be opened. Folders without a manifest and what
    was exported there are left out.

    Raises:
        UsageError: `root` cannot be read.
    """
    return [run for run in _with_exports(root) if not run.exported]


def _with_exports(root: Path | str) -> list[RunFolder]:
    """Runs and exports under `root`, newest first."""
    base = local_path(root)
    if not os.path.isdir(base):
        return []
    try:
        found = [RunFolder(Path(os.path.abspath(path))) for path in base.iterdir() if _is_run(path)]
    except OSError as error:
        raise UsageError(f"{str(base)!r} cannot be read: {error.strerror}.") from error
    return sorted(found, key=lambda run: (*_begun(run), run.name), reverse=True)


def _is_run(folder: Path) -> bool:
    """Whether a folder has a manifest, or does not let anybody look."""
    try:
        return (folder / "manifest.json").is_file()
    except PermissionError:
        return True
    except OSError:  # a name that no file can have
        return False


def _begun(run: RunFolder) -> tuple[float, float]:
    """When a run was begun, as far as that can be told: as its manifest says, which a copy keeps, and never
    after the file was written; then when that was."""
    written = 0.0
    for path in (run.path / "manifest.json", run.path):
        with suppress(OSError):
            written = path.stat().st_mtime
            break
    with suppress(UsageError, ValueError):  # damaged, or no date: when it was written has to do
        created = datetime.fromisoformat(read_manifest(run.manifest()).created or "")
        return min(created.timestamp(), written), written
    return written, written


def load_run(ref: str | Path, *, root: Path | str = "runs") -> RunFolder:
    """The run that `ref` means: a path, a name under `root`, an unambiguous part of one, or `latest`, the
    newest that can be read. Newer ones that cannot are told by a warning. An export is known by its path and
    its whole name.

    Raises:
        UsageError: there is none, or several match; the message names near matches.
    """
    text = str(ref)
    direct = local_path(text)
    if _is_run(direct):
        return RunFolder(Path(os.path.abspath(direct)))
    found = _with_exports(root)
    runs = [run for run in found if not run.exported]
    if text == "latest":
        damaged: list[str] = []
        for run in runs:
            try:
                run.manifest()
            except UsageError as error:
                damaged.append(str(error))
                continue
            if damaged:
                _log.warning("'latest' is %s here, as what is newer cannot be read. %s", run.name, damaged[0])
            return run
        if damaged:
            raise UsageError(f"No run under {str(root)!r} can be read. {damaged[0]}")
        raise UsageError(no_runs(root))
    named = [r for r in found if r.name == text] or [r for r in runs if text and text in r.name]
    if len(named) == 1:
        return named[0]
    if named:
        raise UsageError(
            f"{text!r} matches several runs: {', '.join(r.name for r in named[:5])}; write more of the name."
        )
    known = ["latest", *(r.name for r in runs)] if runs else []
    hint = near(text, known) or (f" Newest: {runs[0].name}." if runs else "")
    raise UsageError(f"There is no run {text!r} (neither a run folder nor a name under {str(root)!r}).{hint}")


@dataclass(frozen=True)
class Parts:
    """The parts of a run that can be read; a missing file is an empty part and, but for the manifest, no
    problem.

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
    """Read all parts of a run that can be read; those that cannot are named in `problems`."""
    problems: list[str] = []
    parts: dict[str, Any] = {}
    reads: dict[str, Callable[[], Any]] = {
        _MANIFEST: folder.manifest,
        "result.json": folder.result,
        "trials.jsonl": folder.trials,
        "finals.jsonl": folder.finals,
        "front.json": folder.front,
    }
    for name, read in reads.items():
        try:
            if name == _MANIFEST or os.path.lexists(folder.path / name):
                parts[name] = read()
        except UsageError as error:
            problems.append(str(error))
    trials: Records = parts.get("trials.jsonl", Records())
    finals: Records = parts.get("finals.jsonl", Records())
    front: Points = parts.get("front.json", Points())
    problems += [found.problem for found in (trials, finals, front) if found.problem]
    manifest, result = parts.get(_MANIFEST), parts.get("result.json")
    return Parts(manifest, result, trials.records, finals.records, front.points, tuple(problems))

"""One job of a run again, in this process: the same recipe, seed, steps, rows and data, with its errors let
through. The run's files are read and never written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.errors import UsageError, near
from autopeft.foreign import check_inside, table_of
from autopeft.runs.folder import RunFolder
from autopeft.search.controller.checkpoints import FolderCheckpoints
from autopeft.search.core.jobs import DONE, Done, Job, JobResult, Progress, TrainJob, tested_run
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.execution.logged_jobs import HandedOut, digests, handed_out, log_file
from autopeft.search.execution.worker import WorkerSetup, release, run_job
from autopeft.search.planning.prepare import Prepared, versions, worker_setup
from autopeft.search.planning.resume import prepare_here
from autopeft.search.strategies.registry import STRATEGIES

__all__ = ["Rerun", "find_job", "prepare_rerun"]

_SHOWN = 8


@dataclass(frozen=True)
class Rerun:
    """A job that can be run again.

    Attributes:
        notices: what differs from the time when it was run, a line each.
        log: where the run keeps the job's log; there may be none.
    """

    job: Job
    setup: WorkerSetup
    notices: tuple[str, ...]
    log: Path

    def run(self, on_step: Progress) -> JobResult:
        """Run the job as the search did; `on_step` is called about once a second.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came.
            Exception: what the job raised.
        """
        source = _Single(self.job, on_step)
        LocalExecutor(release).run_jobs(source, run_job, self.setup)
        assert source.result is not None  # the executor returns after the job's result alone
        return source.result


def prepare_rerun(
    folder: RunFolder,
    name: str,
    *,
    attempt: int | None = None,
    notify: Callable[[str], None] | None = None,
    metric: Callable[..., Any] | None = None,
) -> Rerun:
    """Prepare a job of a run (see `find_job`) from what the run folder holds.

    Args:
        metric: the function that the run was begun with, where its metric is one of the user's own.

    A trial that went on from a checkpoint runs from the start where that is gone.

    Raises:
        UsageError: there is no such job, the weights that it scored are gone, or data or backbone are not
            those that the run was begun with.
    """
    check_inside(folder.path)
    STRATEGIES.load()  # a strategy of another package brings its own types of jobs
    found = find_job(handed_out(folder), name, attempt=attempt)
    files, notices = _carried(folder, found)
    ready = prepare_here(folder, notify, metric=metric)
    notices += _differences(folder, ready)
    job = replace(found.job, files=files)
    if isinstance(job, TrainJob):
        job = replace(job, within=None)  # that was the search's time
    if job.kind == "trial" and ready.arguments.precision == "bf16":
        job = replace(job, precision="bf16")  # before jobs said so themselves
    return Rerun(job, worker_setup(ready), tuple(notices), log_file(folder, job.id))


def find_job(listed: Sequence[HandedOut], name: str, *, attempt: int | None = None) -> HandedOut:
    """The job that `name` means: its id, the name of its log, or the number of a trial.

    Of several (a trial that was paused, a job that was lost and given again) it is the one that was handed
    out last.

    Args:
        attempt: 1 for a job as it was given first, 2 for after its worker was lost once.

    Raises:
        UsageError: there is none; the message names near matches.
    """
    wanted = Path(name).name.removesuffix(".txt")
    found = [entry for entry in listed if entry.job.id == wanted]
    number = re.fullmatch(r"(?:trial[- ]?)?(\d+)", wanted)
    if not found and number is not None:
        found = [e for e in listed if e.job.kind == "trial" and e.job.number == int(number[1])]
    if not found:
        known = list(dict.fromkeys(entry.job.id for entry in listed))
        more = "" if len(known) <= _SHOWN else f" and {len(known) - _SHOWN} more"
        raise UsageError(
            f"There is no job {name!r}.{near(wanted, known)} A job is named by its id or by a trial's "
            f"number; the run had {', '.join(known[:_SHOWN])}{more}."
        )
    tries = [entry for entry in found if attempt is None or entry.job.attempt == attempt - 1]
    if not tries:
        had = sorted({entry.job.attempt + 1 for entry in found})
        raise UsageError(f"{name!r} has no attempt {attempt}; it had {', '.join(map(str, had))}.")
    return tries[-1]


def _carried(folder: RunFolder, entry: HandedOut) -> tuple[Mapping[str, bytes] | None, list[str]]:
    """The files that a job had with it, if they are still there, and what to say if not."""
    if not entry.carried:
        return None, []
    job = entry.job
    key = f"trial-{job.number}" if job.kind == "trial" else tested_run(job.id)
    for files in (FolderCheckpoints(folder.state / "files").get(key), _winner(folder, entry.carried)):
        if files is not None and digests(files) == entry.carried:
            return files, []
    if job.kind == "trial":
        return None, [f"{job.id} went on from a checkpoint that is gone; here it is trained from the start."]
    raise UsageError(
        f"The weights that {job.id} scored are gone: they are kept until the search is done, and the "
        f"winner's afterwards. Run the job that trained them: {key}."
    )


def _winner(folder: RunFolder, names: Mapping[str, str]) -> dict[str, bytes] | None:
    paths = [folder.winner / Path(name).name for name in names]
    return {p.name: p.read_bytes() for p in paths} if all(p.is_file() for p in paths) else None


def _differences(folder: RunFolder, ready: Prepared) -> list[str]:
    """What may let numbers differ from those of the run."""
    before, now = folder.manifest(), versions()
    found = []
    then = table_of(before.get("versions"))
    changed = [
        f"{name} {then[name]} then and {number} now"
        for name, number in now.items()
        if name in then and then[name] != number
    ]
    found += [f"Versions differ: {', '.join(changed)}."] if changed else []
    device = table_of(before.get("training")).get("device")
    if device not in (None, ready.plan.device):
        found.append(f"The run trained on {device!r}, and this is {ready.plan.device!r}.")
    return found


class _Single:
    """A source of one job; an interruption ends it at once."""

    def __init__(self, job: Job, on_step: Progress) -> None:
        self._job: Job | None = job
        self._on_step = on_step
        self.result: JobResult | None = None
        self.stopped = False

    def next(self) -> Job | Done | None:
        job, self._job = self._job, None
        return DONE if job is None else job

    def progress(self, job: str, step: int, loss: float) -> None:
        self._on_step(step, loss)

    def complete(self, result: JobResult) -> None:
        self.result = result

    def scale(self, workers: int) -> None:
        """One at a time, as anywhere in this process."""

    def interrupt(self) -> None:
        raise KeyboardInterrupt

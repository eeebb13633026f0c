"""The executor without Ray: one job at a time, in this process and in the caller's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from autopeft.search.core.jobs import Done, Job, JobResult, JobSource
from autopeft.search.execution.environment import signals
from autopeft.search.execution.executor import Runner, raise_error_of_source
from autopeft.search.execution.job_log import finished_log
from autopeft.search.execution.output import Tee
from autopeft.search.execution.process import ProcessInfo

__all__ = ["LocalExecutor"]

_REPORT_SECONDS = 1.0


class LocalExecutor:
    """Runs jobs one after the other in this process (see `Executor`).

    For notebooks, for debuggers, for tests, and where Ray does not start. A job that ends the process ends
    the search. An interruption is heeded at the next step of a training.

    Args:
        release: is called at the end, whatever happened: lets go of what the runner keeps between jobs.
        clock: monotonic seconds.
    """

    def __init__(
        self, release: Callable[[], None] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._release, self._clock = release, clock

    def run_jobs(
        self,
        source: JobSource,
        runner: Runner,
        setup: Any,
        *,
        ending: Callable[[], None] | None = None,
    ) -> None:
        """See `Executor.run_jobs`; what the runner raises, which it should not, comes through."""
        about = ProcessInfo.own()
        try:
            with signals(source):
                _told(source.scale, 1)
                while not source.stopped:
                    job = _told(source.next)
                    if isinstance(job, Done):
                        break
                    if job is None:
                        raise RuntimeError("The source awaits a result, but no job runs.")
                    _told(source.complete, self._run(source, runner, setup, job, about))
            if ending is not None:
                ending()
        finally:
            if self._release is not None:
                self._release()

    def _run(self, source: JobSource, runner: Runner, setup: Any, job: Job, about: ProcessInfo) -> JobResult:
        """Do one job.

        Raises:
            Exception: what the source raised when it was told of progress.
        """
        tee, wrong = Tee(), list[Exception]()
        due = self._clock()

        def on_step(step: int, loss: float) -> None:
            nonlocal due
            if wrong or self._clock() < due:
                return
            due = self._clock() + _REPORT_SECONDS
            with tee.resting():  # what a display prints is not the job's
                try:
                    source.progress(job.id, step, loss)
                except Exception as error:
                    # Kept, as the runner would take it for an error of the job.
                    wrong.append(error)

        with tee.keeping():
            result = runner(setup, job, on_step, lambda: bool(wrong) or source.stopped)
        if wrong:
            raise_error_of_source(wrong[0])
        result.log = finished_log(about, result.log, tee.text())
        return result


def _told(function: Callable[..., Any], *args: Any) -> Any:
    """What a method of the source returns; what it raises ends the run."""
    try:
        return function(*args)
    except Exception as error:
        raise_error_of_source(error)

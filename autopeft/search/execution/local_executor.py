"""The executor without Ray: one job at a time, in this process and in the caller's thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from autopeft.interruption import heeded, remind
from autopeft.search.core.jobs import Done, Job, JobResult, JobSource
from autopeft.search.execution.executor import STOP_SECONDS, Runner, raise_error_of_source
from autopeft.search.execution.job_log import finished_log
from autopeft.search.execution.output import Tee
from autopeft.search.execution.process import ProcessInfo

__all__ = ["LocalExecutor"]

_REPORT_SECONDS = 1.0
_LOOK_SECONDS = 0.25


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
        watch = _Watch(source)
        try:
            # Closed before signals mean what they meant: a reminder that comes later would end the process.
            with heeded(watch.interrupt, lambda: source.stopped), closing(watch):
                _told(source.scale, 1)
                while not source.stopped:
                    job = _told(source.next)
                    if isinstance(job, Done):
                        break
                    if job is None:
                        raise RuntimeError("The source awaits a result, but no job runs.")
                    try:
                        watch.working = True
                        result = self._run(source, runner, setup, job, about)
                    except _OverdueError:
                        continue  # it did not heed an interruption in time
                    finally:
                        watch.working = False
                    _told(source.complete, result)
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
        result.log = finished_log(about, result.log, tee.kept)
        return result


class _OverdueError(BaseException):
    """Takes a job that does not heed an interruption out of its runner, which handles no such thing."""


class _Watch:
    """Sees to it that an interruption ends a job that does not heed it."""

    def __init__(self, source: JobSource) -> None:
        self._source = source
        self.working = self._overdue = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def interrupt(self) -> None:
        """Interrupt the source; in the main thread, as all handlers of signals are called."""
        if self._overdue and self.working:
            raise _OverdueError
        self._source.interrupt()
        if self._thread is None:
            self._thread = threading.Thread(target=self._wait, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Wait until nothing more is seen to; what was interrupted in time is not reminded."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _wait(self) -> None:
        while not self._source.stopped:
            if self._closed.wait(_LOOK_SECONDS):
                return
        end = time.monotonic() + STOP_SECONDS
        while self.working and not self._closed.wait(_LOOK_SECONDS):
            if self.working and time.monotonic() >= end:
                self._overdue = True
                remind()
                return


def _told(function: Callable[..., Any], *args: Any) -> Any:
    """What a method of the source returns; what it raises ends the run."""
    try:
        return function(*args)
    except Exception as error:
        raise_error_of_source(error)

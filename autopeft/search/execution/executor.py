"""What runs jobs: the one interface of the executor on Ray and of the one in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import Job, JobResult, JobSource, Progress

__all__ = ["STOP_SECONDS", "Executor", "Runner", "raise_error_of_source"]

# Schedulers leave some 15 s and more between SIGTERM and SIGKILL; what follows has to fit as well.
STOP_SECONDS = 5.0

Runner = Callable[[Any, Job, Progress, Callable[[], bool]], JobResult]


class Executor(Protocol):
    """Runs the jobs of a source."""

    def run_jobs(
        self,
        source: JobSource,
        runner: Runner,
        setup: Any,
        *,
        ending: Callable[[], None] | None = None,
    ) -> None:
        """Run every job of `source` until it has no more or is stopped.

        `runner(setup, job, on_step, should_stop)` does a job. The source is called in the caller's thread
        alone, and told of progress about once a second. Ctrl-C and SIGTERM interrupt the source; a
        Ctrl-C once it is stopped ends the process as usual. Jobs that do not heed that it is stopped are
        given up after `STOP_SECONDS`.

        Args:
            ending: is called in the caller's thread when no job runs any more.

        Raises:
            AutoPEFTError: the source cannot write any more, or the executor cannot work.
            Exception: what else the source raised.
        """
        ...


def raise_error_of_source(error: Exception) -> NoReturn:
    """Raise what a source raised; an `OSError` of its files becomes an `AutoPEFTError` that says so. A closed
    pipe is none of its files."""
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        raise AutoPEFTError(
            f"The run folder cannot be used any more: {error}. What was written before is intact."
        ) from error
    raise error

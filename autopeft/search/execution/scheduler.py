"""Who runs what on which worker: hires workers, hands jobs to them and results back. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import Done, Job, JobResult, JobSource
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.health import HealthCheck
from autopeft.search.execution.job_log import WorkerTrace
from autopeft.search.execution.pool import Capacity

__all__ = ["Scheduler"]

_STARTS = 4
_LONGEST_WAIT = 60.0
_LOOK_SECONDS, _SILENT_SECONDS, _STOPPED_SECONDS = 2.0, 5.0, 6.0
_START_SECONDS, _ELSEWHERE_SECONDS = 10.0, 6.0
_LOST = "The worker process ended before the job did: killed, out of memory, or its machine is gone"


@dataclass
class _WorkerState:
    """A worker as the driver sees it: when it was last heard of, its handle, once it is up, its machine, the
    id of the job that it runs, what tells why it did not take that job, and what will be known of it if it is
    lost."""

    heard: float
    handle: Any = None
    node: str = ""
    job: str | None = None
    refusal: Callable[[], str] = str
    trace: WorkerTrace = field(default_factory=WorkerTrace)


class Scheduler:
    """Hires workers, hands jobs to them and results back.

    Called in Tune's thread; whatever the source does is done in the caller's. What the source raises ends the
    run and is kept in `fatal`. A worker is hired when there is a job for it, but who is free first takes it:
    short jobs do not keep the capacity small, as its workers take long to come up.

    A worker tells of itself about once a second. One that is silent and whose process stands still, as after
    SIGSTOP, is killed, so that its job is given out again. A process that computes, however slowly, is left
    alone.

    Args:
        give: sends a job to the worker of a handle; what it returns tells why it did not arrive.
        look_there: is told of a silent worker of another machine, now and then, by its machine and process
            id, to do there what is done here.
        look_at_starting: is told now and then that a worker takes long to come up.
    """

    def __init__(
        self,
        source: JobSource,
        capacity: Capacity,
        driver: DriverThread,
        health: HealthCheck,
        give: Callable[[Any, Job], Callable[[], str]],
        *,
        look_there: Callable[[str, int], None] = lambda node, pid: None,
        look_at_starting: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._capacity, self._driver, self._health = source, capacity, driver, health
        self._give, self._clock = give, clock
        self._look_there, self._look_at_starting = look_there, look_at_starting
        self._look_from = self._elsewhere_from = clock()
        self._workers: dict[str, _WorkerState] = {}
        self._held: deque[Job] = deque()
        self._failed_starts, self._start_from = 0, clock()
        self._done = False
        self.fatal: Exception | None = None

    def request_worker(self, name: str) -> bool:
        """Whether there is room and work for one more worker; it then has this name."""
        if len(self._workers) >= self._capacity.size or self._clock() < self._start_from:
            return False
        if len(self._held) <= sum(worker.handle is None for worker in self._workers.values()):
            job = self._ask()
            if job is None:
                return False
            self._held.append(job)
        self._workers[name] = _WorkerState(self._clock())
        return True

    def receive(self, name: str, result: dict[str, Any]) -> None:
        """Take a worker's news, out of `result`, which Tune keeps; and give it the next job if it is free."""
        worker = self._workers[name]
        worker.heard, worker.trace.stopped_since = self._clock(), None
        if "handle" in result:
            worker.handle, self._failed_starts = result.pop("handle"), 0
            worker.node = result.pop("node", "")
            if "about" in result:
                worker.trace.introduce(result.pop("about"))
        worker.trace.ends = result.pop("ends", worker.trace.ends)
        worker.trace.peak = result.pop("peak", worker.trace.peak)
        idle = result.pop("idle", False)
        with self._guard():
            if "outcome" in result:
                worker.job = None
                self._driver.call(self._source.complete, result.pop("outcome"))
            elif "news" in result:
                worker.trace.step, worker.trace.loss = news = result.pop("news")
                self._driver.call(self._source.progress, worker.job, *news)
            elif idle and worker.job is not None:  # it would wait for ever
                error = f"The worker could not take the job: {worker.refusal()}"
                refused = JobResult(worker.job, error=error, failure="lost")
                worker.job = None
                self._driver.call(self._source.complete, refused)
            if worker.job is None and not self.stop():
                job = self._held.popleft() if self._held else self._ask()
                if job is not None:
                    worker.job = job.id
                    worker.trace.begin()
                    worker.refusal = self._give(worker.handle, job)

    def worker_lost(self, name: str, reason: str, told: str = "") -> None:
        """Take note that a worker is no more.

        Args:
            reason: a line that says why.
            told: all that Ray says of it, for the job's log.
        """
        worker = self._workers.pop(name)
        with self._guard():
            if worker.job is not None:
                log = worker.trace.lost_log(told or reason)
                outcome = JobResult(worker.job, error=_lost(reason), failure="lost", log=log)
                self._driver.call(self._complete_lost, outcome)
            elif worker.handle is None and self._clock() >= self._start_from:
                self._start_failed(reason)

    def stop(self) -> bool:
        """Whether the run ends now. Called all the time, so that the capacity's size is kept up here."""
        self._driver.pause()
        with self._guard():
            if self._capacity.due or self._health.doubt:
                # Where Ray is gone, a call of it would never come back.
                self._driver.call(self._health.settle, self._is_stopped)
            if self._capacity.look():
                self._driver.call(self._source.scale, self._capacity.size)
            if self._clock() >= self._look_from:
                self._look_from = self._clock() + _LOOK_SECONDS
                self._end_stopped()
        if self._source.stopped or self.fatal is not None:
            return True
        return self._done and not self._held and all(m.job is None for m in self._workers.values())

    def _end_stopped(self) -> None:
        """Kill the processes of workers that stand still."""
        now = self._clock()
        silent = [worker for worker in self._workers.values() if now - worker.heard > _SILENT_SECONDS]
        for trace in (worker.trace for worker in silent):
            if not trace.stopped:
                trace.stopped_since = None
            elif trace.stopped_since is None:
                trace.stopped_since = now
            elif now - trace.stopped_since >= _STOPPED_SECONDS:
                trace.kill()
        if not silent or now < self._elsewhere_from:
            return
        self._elsewhere_from = now + _ELSEWHERE_SECONDS
        for worker in silent:
            if worker.trace.about is not None and not worker.trace.about.here:
                self._look_there(worker.node, worker.trace.about.pid)
        if any(worker.handle is None and now - worker.heard > _START_SECONDS for worker in silent):
            self._look_at_starting()

    def _ask(self) -> Job | None:
        if self._done:
            return None
        with self._guard():
            job = self._driver.call(self._source.next)
            self._done = isinstance(job, Done)
            return job if isinstance(job, Job) else None
        return None

    def _complete_lost(self, outcome: JobResult) -> None:
        # Where Ray itself has ended, no job is to blame.
        self._health.settle(self._is_stopped)
        self._source.complete(outcome)

    def _is_stopped(self) -> bool:
        return self._source.stopped

    def _start_failed(self, reason: str) -> None:
        """Wait longer and longer before the next; a machine where none can start must not stop the others."""
        self._failed_starts += 1
        self._start_from = self._clock() + min(_LONGEST_WAIT, 2.0**self._failed_starts)
        if self._failed_starts >= _STARTS and all(worker.handle is None for worker in self._workers.values()):
            raise AutoPEFTError(
                f"Workers cannot start, tried {self._failed_starts} times. The last time: {reason}"
            )

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.fatal = self.fatal or error


def _lost(reason: str) -> str:
    """What to tell of a lost job; Ray's own reasons are long, and speak of actors."""
    if reason.startswith("The actor"):
        return f"{_LOST} (Ray: {reason.partition('.')[0]})."
    return f"The worker failed: {reason}"

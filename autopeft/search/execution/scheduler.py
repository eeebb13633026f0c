"""Who runs what on which worker: hires workers, hands jobs to them and results back. Knows nothing of Ray."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import Done, Job, JobResult, JobSource
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.health import HealthCheck

__all__ = ["Capacity", "Pool", "Resources", "Scheduler"]

_LOOK_SECONDS = 2.0
_EMPTY_SECONDS = 60.0
_STARTS = 4
_LONGEST_WAIT = 60.0
_LOST = "The worker process ended before the job did: killed, out of memory, or its machine is gone"
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """The workers of a search.

    Attributes:
        workers: jobs at a time; `None` for as many as the cluster has room for.
        cpus, gpus: what each job takes; `gpus` may be a fraction.
        address: an existing Ray cluster, or `None` for a private, local one.
    """

    workers: int | None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None


class Capacity:
    """How many jobs run at a time: as asked for, within what the machines have room for that are there now.

    Args:
        nodes: what each machine has, by Ray's names (`CPU`, `GPU`).

    Raises:
        AutoPEFTError: no machine has room for one job.
    """

    def __init__(
        self,
        pool: Pool,
        nodes: Callable[[], Sequence[Resources]],
        *,
        resume: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._nodes, self._resume, self._clock = pool, nodes, resume, clock
        self._next, self._empty_since = clock() + _LOOK_SECONDS, float("inf")
        self.size = self._count()
        if self.size < 1:
            cpus, gpus = (sum(n.get(what, 0.0) for n in nodes()) for what in ("CPU", "GPU"))
            raise AutoPEFTError(
                f"A job needs {pool.cpus} CPUs and {pool.gpus:g} GPUs on one machine, but Ray has {cpus:g} "
                f"and {gpus:g} in all; lower --cpus-per-trial or --gpus-per-trial."
            )

    @property
    def due(self) -> bool:
        """Whether `look` will ask about the machines: every 2 s."""
        return self._clock() >= self._next

    def look(self) -> bool:
        """Whether the size has changed.

        Raises:
            AutoPEFTError: there has been no room for any job for a minute.
        """
        if not self.due:
            return False
        now = self._clock()
        before, self.size, self._next = self.size, self._count(), now + _LOOK_SECONDS
        self._empty_since = float("inf") if self.size else min(self._empty_since, now)
        if now - self._empty_since > _EMPTY_SECONDS:
            raise AutoPEFTError(
                "No machine of the Ray cluster has had room for a job for a minute. Everything that had "
                f"finished is on disk; go on with `{self._resume}`."
            )
        return self.size != before

    def _count(self) -> int:
        room = sum(self._fit(node) for node in self._nodes())
        return room if self._pool.workers is None else min(room, self._pool.workers)

    def _fit(self, have: Resources) -> int:
        """Jobs at a time on one node; a share of a GPU is a share of one GPU, not of several."""
        room = int(have.get("CPU", 0.0) / self._pool.cpus)
        gpus = self._pool.gpus
        if 0 < gpus < 1:
            room = min(room, int(have.get("GPU", 0.0)) * int(1 / gpus + 1e-6))
        elif gpus:
            room = min(room, int(have.get("GPU", 0.0) / gpus))
        return room


@dataclass
class _WorkerState:
    """A worker as the driver sees it: its handle, once it is up, and the id of the job that it runs."""

    handle: Any = None
    job: str | None = None


class Scheduler:
    """Hires workers, hands jobs to them and results back.

    Called in Tune's thread; whatever the source does is done in the caller's. What the source raises ends the
    run and is kept in `fatal`. A worker is hired when there is a job for it, but who is free first takes it:
    short jobs do not keep the capacity small, as its workers take long to come up.

    Args:
        give: sends a job to the worker of a handle.
    """

    def __init__(
        self,
        source: JobSource,
        capacity: Capacity,
        driver: DriverThread,
        health: HealthCheck,
        give: Callable[[Any, Job], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._capacity, self._driver, self._health = source, capacity, driver, health
        self._give, self._clock = give, clock
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
        self._workers[name] = _WorkerState()
        return True

    def receive(self, name: str, result: dict[str, Any]) -> None:
        """Take a worker's news, out of `result`, which Tune keeps; and give it the next job if it is free."""
        worker = self._workers[name]
        if "handle" in result:
            worker.handle, self._failed_starts = result.pop("handle"), 0
        with self._guard():
            if "outcome" in result:
                worker.job = None
                self._driver.call(self._source.complete, result.pop("outcome"))
            elif "news" in result:
                self._driver.call(self._source.progress, worker.job, *result.pop("news"))
            if worker.job is None and not self.stop():
                job = self._held.popleft() if self._held else self._ask()
                if job is not None:
                    worker.job = job.id
                    self._give(worker.handle, job)

    def worker_lost(self, name: str, reason: str) -> None:
        """Take note that a worker is no more."""
        worker = self._workers.pop(name)
        with self._guard():
            if worker.job is not None:
                outcome = JobResult(worker.job, error=_lost(reason), failure="lost")
                self._driver.call(self._complete_lost, outcome)
            elif worker.handle is None and self._clock() >= self._start_from:
                self._start_failed(reason)

    def stop(self) -> bool:
        """Whether the run ends now. Called all the time, so that the capacity's size is kept up here."""
        self._driver.pause()
        with self._guard():
            if self._capacity.due or self._health.doubt:
                # Where Ray is gone, a call of it would never come back.
                self._driver.call(self._health.settle)
            if self._capacity.look():
                self._driver.call(self._source.scale, self._capacity.size)
        if self._source.stopped or self.fatal is not None:
            return True
        return self._done and not self._held and all(m.job is None for m in self._workers.values())

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
        self._health.settle()
        self._source.complete(outcome)

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

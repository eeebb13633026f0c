"""The workers of a search: what is asked for, and how many jobs the machines that are there have room for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autopeft.errors import AutoPEFTError

__all__ = ["Capacity", "Pool", "Resources"]

_LOOK_SECONDS = 2.0
_EMPTY_SECONDS = 60.0
Resources = Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """The workers of a search.

    Attributes:
        workers: jobs at a time; `None` for as many as the cluster has room for.
        cpus, gpus: what each job takes; `gpus` may be a fraction.
        address: an existing Ray cluster, or `None` for a private, local one.
        listen: the IP address of this machine at which a private one is there for others; `None` for none.
        gpus_here: GPUs of this machine that a private one gives to jobs; `None` for those that Ray finds.
    """

    workers: int | None
    cpus: int = 1
    gpus: float = 0.0
    address: str | None = None
    listen: str | None = None
    gpus_here: int | None = None


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

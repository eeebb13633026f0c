"""What a search's workers are given, out of its plan."""

from __future__ import annotations

from autopeft.search.execution.worker import WorkerSetup
from autopeft.search.planning.prepare import Prepared

__all__ = ["worker_setup"]


def worker_setup(ready: Prepared) -> WorkerSetup:
    """What all jobs of a search share."""
    return WorkerSetup(
        model=ready.model_name,
        source=ready.source,
        task=ready.task,
        plan=ready.plan,
        threads=ready.cpus,
        key=ready.key(),
        latency=ready.within.latency is not None,
        processes=ready.processes,
    )

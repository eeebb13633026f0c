"""Jobs outside a search: a few recipes, a worker's setup in files, a list of jobs done in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.search.core.jobs import Done, Job, JobResult
    from autopeft.search.execution.worker import WorkerSetup

__all__ = ["RECIPES", "JobList", "load_backbone_and_data", "make_job", "read_setup", "run_here"]

RECIPES: dict[str, dict[str, Any]] = {
    "head-only": {"name": "head-only"},
    "lora": {"name": "lora", "layers": [{"attach": [{"lora": {"sites": ["q", "v"], "rank": 8}}]}]},
    "prompt": {"name": "prompt", "model": [{"prompt_tuning": {"length": 16}}]},
    "hybrid": {
        "name": "hybrid",
        "layers": [
            {
                "attach": [
                    {"lora": {"sites": ["q", "v"], "rank": 4}},
                    {"prefix_tuning": {"length": 8}},
                    {"serial_adapter": {"bottleneck": 8}},
                    "ia3",
                ]
            }
        ],
        "model": ["bitfit"],
    },
}


def load_backbone_and_data(setup: WorkerSetup) -> tuple[Any, Any]:
    """Load backbone and data in this process as the worker does for its first job; returns both."""
    from autopeft.search.execution.worker import loaded

    kept = loaded(setup)
    return kept.backbone(setup), kept.data


def read_setup(folder: Path, name: str = "setup") -> WorkerSetup:
    """The setup that an earlier process left in `folder`."""
    setup: WorkerSetup = pickle.loads((folder / f"{name}.pickle").read_bytes())
    return setup


def make_job(recipe: str, steps: int, number: int = 0) -> Job:
    """A job of one of `RECIPES`."""
    from autopeft.search.core.jobs import TrainJob

    return TrainJob(f"{recipe}-{number}", "trial", recipe, RECIPES[recipe], steps=steps)


class JobList:
    """A job source that hands out a list in order and keeps the results.

    Args:
        on_step: is told of a job's first step and then about once a second.
        strict: whether a job that fails ends the process: there is nothing to measure.
    """

    def __init__(
        self, jobs: Sequence[Job], on_step: Callable[[int, float], None] | None = None, *, strict: bool = True
    ) -> None:
        self._jobs, self._on_step, self._strict = list(jobs), on_step, strict
        self.results: list[JobResult] = []
        self.stopped = False

    def next(self) -> Job | Done:
        from autopeft.search.core.jobs import DONE

        return self._jobs.pop(0) if self._jobs else DONE

    def complete(self, result: JobResult) -> None:
        """Keep a result.

        Raises:
            SystemExit: the job has failed, and the list is strict.
        """
        if result.error is not None and self._strict:
            raise SystemExit(f"{result.job}: {result.error}")
        self.results.append(result)

    def progress(self, job: str, step: int, loss: float) -> None:
        if self._on_step is not None:
            self._on_step(step, loss)

    def interrupt(self) -> None:
        self.stopped = True

    def scale(self, workers: int) -> None:
        """One job at a time in any case."""


def run_here(
    setup: Any,
    *jobs: Job,
    on_step: Callable[[int, float], None] | None = None,
    strict: bool = True,
) -> list[JobResult]:
    """Do jobs as a search with `--workers 0` does them, and keep what they share for the next call.

    Raises:
        SystemExit: a job has failed, unless `strict` is off.
        KeyboardInterrupt: a signal asked to stop before all were done.
    """
    from autopeft.search.execution.local_executor import LocalExecutor
    from autopeft.search.execution.worker import execute

    source = JobList(jobs, on_step, strict=strict)
    LocalExecutor().run_jobs(source, execute, setup)
    if source.stopped:
        raise KeyboardInterrupt
    return source.results

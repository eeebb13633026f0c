"""A source of jobs, and a runner that does not train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autopeft.search.core.jobs import DONE, Done, Job, JobResult, TrainJob


class Source:
    """A fixed list of jobs."""

    def __init__(self, jobs: list[Job]) -> None:
        self.left, self.open, self.results = list(jobs), set[str](), dict[str, JobResult]()
        self.files: dict[str, dict[str, bytes]] = {}
        self.steps: list[tuple[str, int, float]] = []
        self.most = self.workers = 0
        self.stopped = False

    def next(self) -> Job | Done | None:
        if not self.left:
            return None if self.open else DONE
        job = self.left.pop(0)
        self.open.add(job.id)
        self.most = max(self.most, len(self.open))
        return job

    def progress(self, job: str, step: int, loss: float) -> None:
        self.steps.append((job, step, loss))

    def complete(self, result: JobResult) -> None:
        self.open.discard(result.job)
        self.results[result.job] = result
        self.files[result.job] = dict(result.files)

    def scale(self, workers: int) -> None:
        self.workers = workers

    def interrupt(self) -> None:
        self.stopped = True


def make_runner() -> Callable[..., JobResult]:
    """A runner that Ray sends by value: workers cannot import the tests."""

    def run(
        setup: Any, job: Job, on_step: Callable[[int, float], None], should_stop: Callable[[], bool]
    ) -> JobResult:
        import os
        import time

        if job.label == "die":
            os._exit(9)
        for step in range(job.steps):
            if should_stop():
                return JobResult(job.id, error="stopped", failure="stopped")
            time.sleep(0.05)
            on_step(step + 1, 0.5)
        files = {} if job.files is None else dict(job.files)
        return JobResult(job.id, scores={"select": setup["score"]}, worker=str(os.getpid()), files=files)

    return run


def job(name: str, label: str = "x", steps: int = 4, **more: Any) -> Job:
    return TrainJob(name, "trial", label, {"name": "r"}, steps=steps, **more)

"""The driver of an executor's run as a process of its own, which tells what happens in lines of JSON.

Started as `python -m support.driving ARGUMENTS`; a test reads its lines with `Driver`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.search.core.jobs import DONE, Done, Job, JobResult, TrainJob

__all__ = ["Driver"]

TESTS = Path(__file__).parents[1]


@dataclass
class Driver:
    """A running driver.

    Attributes:
        events: what it has told so far: `given`, `begun`, `done`, `scale`, `notice`, `raised`, `ended`, each
            with its fields.
    """

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, environment: Mapping[str, str], *, folder: Path, **arguments: Any) -> Driver:
        """Run `jobs` jobs of `seconds` each on the pool at `address`, with `folder` for the executor's files.

        Further arguments: `cpus`, `gpus`, `workers` and `listen` of the pool; `logs`, a folder for Ray's own
        logs; `linger`, seconds that the process stays after the run.
        """
        process = subprocess.Popen(
            [sys.executable, "-m", "support.driving", json.dumps({"folder": str(folder), **arguments})],
            env={**environment, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return cls(process)

    def wait_for(self, what: str, count: int = 1, *, seconds: float = 120) -> list[dict[str, Any]]:
        """All events of a kind, once there are so many of them.

        Raises:
            AssertionError: the driver ended before that, or was ended as it took too long.
        """
        overdue = threading.Timer(seconds, self.process.kill)
        overdue.start()
        try:
            while len(found := self.of(what)) < count:
                assert self.process.stdout is not None
                line = self.process.stdout.readline()
                assert line, f"the driver ended early: {self.events} {self.other}"
                self._read(line)
            return found
        finally:
            overdue.cancel()

    def finish(self, *, seconds: float = 120) -> int:
        """Read everything that it still says; its exit status."""
        overdue = threading.Timer(seconds, self.process.kill)
        overdue.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self._read(line)
            return self.process.wait()
        finally:
            overdue.cancel()

    def of(self, what: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["what"] == what]

    def _read(self, line: str) -> None:
        if line.startswith("{"):
            self.events.append(json.loads(line))
        else:
            self.other.append(line.rstrip())


class _Jobs:
    """A source of alike jobs; one whose worker was lost is not given again."""

    def __init__(self, jobs: int) -> None:
        self._left, self._open = [f"job-{i}" for i in range(jobs)], set[str]()
        self._begun: set[str] = set()
        self.stopped = False

    def next(self) -> Job | Done | None:
        if not self._left:
            return None if self._open else DONE
        job = TrainJob(self._left.pop(0), "trial", "x", {"name": "r"}, steps=1)
        self._open.add(job.id)
        _tell("given", job=job.id)
        return job

    def progress(self, job: str, step: int, loss: float) -> None:
        if step and job not in self._begun:
            self._begun.add(job)
            _tell("begun", job=job)

    def complete(self, result: JobResult) -> None:
        self._open.discard(result.job)
        _tell("done", job=result.job, failure=result.failure, worker=result.worker, **result.scores)

    def scale(self, workers: int) -> None:
        _tell("scale", workers=workers)

    def interrupt(self) -> None:
        self.stopped = True


def _sleep(
    setup: Any, job: Job, on_step: Callable[[int, float], None], should_stop: Callable[[], bool]
) -> JobResult:
    import os
    import time

    begin = time.time()
    on_step(1, 0.5)
    while time.time() < begin + setup and not should_stop():
        time.sleep(0.05)
    scores = {"select": 0.5, "begin": begin, "end": time.time(), "moved": float("artifacts" in os.getcwd())}
    return JobResult(job.id, scores, worker=f"w:{os.getpid()}")


def _tell(what: str, **fields: Any) -> None:
    print(json.dumps({"what": what, "at": time.time(), **fields}), flush=True)


def _main(arguments: Mapping[str, Any]) -> None:
    from autopeft.errors import AutoPEFTError
    from autopeft.search.execution.ray_executor import Pool, run_jobs

    pool = Pool(
        arguments.get("workers"),
        arguments.get("cpus", 1),
        arguments.get("gpus", 0.0),
        arguments["address"],
        arguments.get("listen"),
    )
    try:
        logs = Path(arguments["logs"]) if "logs" in arguments else None
        folder = Path(arguments["folder"])
        run_jobs(
            _Jobs(arguments["jobs"]),
            _sleep,
            arguments["seconds"],
            pool,
            folder,
            logs=logs,
            notify=lambda text: _tell("notice", text=text),
        )
        _tell("ended")
    except AutoPEFTError as error:
        _tell("raised", kind=type(error).__name__, text=str(error))
    time.sleep(arguments.get("linger", 0.0))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

"""What Ray costs a search: trivial trials through Ray and in this process, and jobs that only last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.worker import JobList, make_job, read_setup

if TYPE_CHECKING:
    from autopeft.search.core.jobs import Job, JobResult

__all__ = ["Trials", "part_ray", "sleep", "tree_cpu"]


def tree_cpu() -> dict[str, float]:
    """CPU seconds so far of this process and of everything it has started, by the process's name.

    What an ended process spent stands with the process that waited for it.
    """
    import psutil  # type: ignore[import-untyped]

    spent: dict[str, float] = {}
    root = psutil.Process()
    for process in (root, *root.children(recursive=True)):
        try:
            name = "driver" if process == root else _name(process.cmdline())
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended since the list was made
        total = times.user + times.system + times.children_user + times.children_system
        spent[name] = spent.get(name, 0.0) + total
    return spent


def _name(command: Sequence[str]) -> str:
    """`raylet`, `ray::_Worker`, `agent.py`: the program, or the script that an interpreter runs."""
    words = [Path(word).name for word in command if not word.startswith("-")]
    if len(words) > 1 and words[0].startswith("python"):
        return words[1]
    return words[0].split()[0] if words and words[0] else "unknown"


class Trials(JobList):
    """Jobs in order; wall and CPU seconds are noted at the end of each."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        super().__init__(jobs)
        self.walls: list[float] = []
        self.cpus: list[dict[str, float]] = []

    def complete(self, result: JobResult) -> None:
        super().complete(result)
        self.walls.append(time.perf_counter())
        self.cpus.append(tree_cpu())

    def each(self, skip: int) -> dict[str, float]:
        """Mean wall and CPU seconds of a job, after the first `skip`."""
        jobs = len(self.walls) - skip
        wall = (self.walls[-1] - self.walls[skip - 1]) / jobs
        return {"wall": wall, "cpu": sum(self.by_name(skip).values()) / jobs}

    def by_name(self, skip: int) -> dict[str, float]:
        """CPU seconds of each process after the first `skip` jobs, the largest first."""
        before, after = self.cpus[skip - 1], self.cpus[-1]
        spent = {name: total - before.get(name, 0.0) for name, total in after.items()}
        return dict(sorted(spent.items(), key=lambda item: -item[1]))


def sleep(setup: None, job: Job, on_step: Callable[[int, float], None], stop: Callable[[], bool]) -> Any:
    """A job that lasts as many seconds as it has steps, and does nothing."""
    import time

    from autopeft.search.core.jobs import JobResult

    time.sleep(job.steps)
    return JobResult(job.id, {"select": 0.0})


def part_ray(folder: Path) -> dict[str, Any]:
    """Trivial trials through Ray and in this process, and jobs that only last."""
    from autopeft.search.execution.local_executor import LocalExecutor
    from autopeft.search.execution.ray_executor import Pool, run_jobs
    from autopeft.search.execution.worker import execute

    options = json.loads((folder / "options.json").read_text())
    count, seconds, skip = options["trials"], options["idle_seconds"], 3
    jobs = [make_job("head-only", 1, i) for i in range(count + skip)]
    setup = read_setup(folder, "few")
    direct = Trials(jobs)
    LocalExecutor().run_jobs(direct, execute, setup)
    began = (time.perf_counter(), sum(tree_cpu().values()))
    through = Trials(jobs)
    run_jobs(through, execute, setup, Pool(1), folder / "ray-trials")
    ended = time.perf_counter()
    lasting = Trials([make_job("head-only", seconds if i == skip else 0, i) for i in range(skip + 1)])
    run_jobs(lasting, sleep, None, Pool(1), folder / "ray-idle")
    a, b, idle = direct.each(skip), through.each(skip), lasting.each(skip)
    fixed = max(0.0, b["cpu"] - a["cpu"])
    return {
        "trials": count,
        "direct": a,
        "through_ray": b,
        "more_for_each_trial": {"wall": b["wall"] - a["wall"], "cpu": fixed},
        "lasting": {
            "seconds": seconds,
            "cpu_each_second": max(0.0, idle["cpu"] - fixed) / seconds,
            "cpu_by_process": lasting.by_name(skip),
        },
        "to_the_end_of_the_first_trial": {
            "wall": through.walls[0] - began[0],
            "cpu": sum(through.cpus[0].values()) - began[1],
        },
        "stop": {"wall": ended - through.walls[-1]},
    }

"""The executor on a real, local Ray, with a runner that does not train."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.errors import AutoPEFTError
from autopeft.search.engine import Pool, run_jobs
from autopeft.search.jobs import DONE, Done, Job, JobResult
from autopeft.search.worker import WorkerSetup, execute
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan


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
    return Job(name, "trial", label, {"name": "r"}, steps=steps, **more)


def test_workers_live_through_jobs_and_a_dead_one_costs_its_job_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    jobs = [job(f"a{i}") for i in range(6)] + [job("dies", "die"), *(job(f"b{i}") for i in range(3))]
    jobs += [job("long", steps=50), job("files", files={"w": b"123"})]
    source = Source(jobs)
    run_jobs(source, make_runner(), {"score": 0.25}, Pool(2), tmp_path / "ray")
    assert set(source.results) == {j.id for j in jobs}
    lost = source.results.pop("dies")
    assert lost.failure == "lost"
    assert lost.error
    assert all(r.score == 0.25 for r in source.results.values())
    assert source.most == source.workers == 2
    assert len({r.worker for r in source.results.values()}) <= 4, "workers were not reused"
    assert any(name == "long" and 0 < step < 50 and loss == 0.5 for name, step, loss in source.steps)
    assert source.files["files"] == {"w": b"123"}
    out, err = capfd.readouterr()
    chatter = [line for line in (out + err).splitlines() if "(raylet)" not in line]
    assert chatter == [], "only the death of a worker may be told"


def test_an_error_of_the_source_ends_the_run_and_is_raised(tmp_path: Path) -> None:
    class Full(Source):
        def complete(self, result: JobResult) -> None:
            raise AutoPEFTError("the disk is full")

    source = Full([job(f"a{i}") for i in range(50)])
    with pytest.raises(AutoPEFTError, match="the disk is full"):
        run_jobs(source, make_runner(), {"score": 0.0}, Pool(1), tmp_path / "ray")
    assert len(source.left) > 40


def test_a_pool_larger_than_the_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AutoPEFTError, match="lower --cpus-per-trial or --gpus-per-trial"):
        run_jobs(Source([job("a")]), make_runner(), {}, Pool(1, gpus=99.0), tmp_path / "ray")


def test_a_cluster_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(AutoPEFTError, match=r"Cannot join the Ray cluster at '127\.0\.0\.1:1'"):
        run_jobs(Source([]), make_runner(), {}, Pool(1, address="127.0.0.1:1"), tmp_path / "ray")


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from search.test_engine import Source, job, make_runner
from autopeft.search.engine import Pool, run_jobs

class Loud(Source):
    def progress(self, *news):
        print("progress", flush=True)

source = Loud([job(f"j{{i}}", steps=40) for i in range(100)])
run_jobs(source, make_runner(), {{"score": 0.5}}, Pool(2), Path({scratch!r}))
print("ended", source.stopped, len(source.results) < 100, flush=True)
"""


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_the_run_and_the_program_goes_on(tmp_path: Path, whole_group: bool) -> None:
    tests = str(Path(__file__).parents[1])
    code = textwrap.dedent(SCRIPT.format(tests=tests, scratch=str(tmp_path / "ray")))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "progress\n"
        if whole_group:  # as a terminal does
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(60) == 0
        assert rest.splitlines()[-1] == "ended True True"
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 30
    while _alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _alive(process.pid), "processes of Ray were left behind"


def _alive(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_losses_are_the_same_with_one_worker_and_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever fills the stores first, and in whatever order: other seeds come in between."""
    layers = [
        [{"at": [1], "attach": [{"lora": {"rank": 2}}]}],
        [{"at": "all", "attach": [{"serial_adapter": {"bottleneck": 4}}]}],
        [{"at": [1], "attach": [{"prefix_tuning": {"length": 2}}]}],
    ]
    recipes: list[dict[str, Any]] = [{"autopeft": 1, "name": "r", "layers": block} for block in layers]
    recipes.append({"autopeft": 1, "name": "r", "model": [{"fish_mask": {"keep": 40, "samples": 4}}]})
    jobs = [
        Job(f"{seed}-{i}", "trial", "x", recipe, seed=seed, steps=4)
        for seed in (0, 1)
        for i, recipe in enumerate(recipes)
    ]
    found = []
    for workers in (1, 2):
        monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / f"cache-{workers}"))
        model = str(save_backbone(tmp_path / f"model-{workers}"))
        task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
        plan = TrainingPlan(steps=4, batch_size=8, max_length=32, device="cpu")
        setup = WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(workers))
        source = Source(jobs)
        run_jobs(source, execute, setup, Pool(workers), tmp_path / f"ray-{workers}")
        assert [r.error for r in source.results.values()] == [None] * len(jobs)
        found.append({job: (r.train_loss, r.scores) for job, r in source.results.items()})
        assert list((tmp_path / f"cache-{workers}" / "trunk").iterdir())
    assert found[0] == found[1]
    assert len({loss for loss, _ in found[0].values()}) == len(jobs)

"""The executor on a real, local Ray, with a runner that does not train."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.cluster import command_of, processes
from support.driving import Driver
from support.jobs import Source, job, make_runner
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import Done, Job, JobResult, TrainJob
from autopeft.search.execution import ray_cluster, ray_executor
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.execution.ray_executor import Pool, run_jobs
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan


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
    assert "The worker's process ended before its job did." in lost.log
    assert "The actor died unexpectedly" in lost.log
    assert all("peak memory of the process" in r.log for r in source.results.values())
    assert all(r.score == 0.25 for r in source.results.values())
    assert source.most == source.workers == 2
    workers = {r.worker for r in source.results.values()}
    assert len(workers) <= 3, "workers were not reused"
    assert all(re.fullmatch(r"\d+@[0-9a-f]{6}", worker) for worker in workers), "process and node"
    assert any(name == "long" and 0 < step < 50 and loss == 0.5 for name, step, loss in source.steps)
    assert source.files["files"] == {"w": b"123"}
    out, err = capfd.readouterr()
    assert (out, err) == ("", ""), "not even the death of a worker may be told on standard output"


@pytest.mark.slow
def test_short_memory_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's monitor would kill a worker at this threshold, and Tune then ends everything."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    source = Source([job("a", steps=50), job("b", steps=50)])
    run_jobs(source, make_runner(), {"score": 0.25}, Pool(1), tmp_path / "ray")
    assert [source.results[name].score for name in ("a", "b")] == [0.25, 0.25]


class Unreadable:
    """What a worker cannot read, as where a package is missing there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


@pytest.mark.slow
def test_a_job_that_a_worker_cannot_read_is_lost_and_the_others_run(tmp_path: Path) -> None:
    broken: Any = {"w": Unreadable()}
    source = Source([job("a"), job("broken", files=broken), job("b")])
    run_jobs(source, make_runner(), {"score": 0.25}, Pool(1), tmp_path / "ray")
    assert set(source.results) == {"a", "broken", "b"}
    lost = source.results["broken"]
    assert lost.failure == "lost"
    assert lost.error is not None
    assert "could not take the job" in lost.error
    assert "no number" in lost.error
    assert source.results["b"].score == 0.25


@pytest.mark.slow
def test_the_ending_comes_after_the_last_job_and_before_ray_ends(tmp_path: Path) -> None:
    source, seen = Source([job("a")]), list[tuple[bool, int]]()

    def ending() -> None:
        seen.append((ray_executor.ray.is_initialized(), len(source.results)))

    run_jobs(source, make_runner(), {"score": 0.5}, Pool(1), tmp_path / "ray", ending=ending)
    assert seen == [(True, 1)]
    assert not ray_executor.ray.is_initialized()


@pytest.mark.slow
def test_what_jobs_carry_is_not_kept(tmp_path: Path) -> None:
    """A megabyte there and one back: Tune keeps every result and configuration of its trials."""
    megabyte, held = 1 << 20, list[int]()

    class Heavy(Source):
        def next(self) -> Job | Done | None:
            found = super().next()
            return replace(found, files={"in": os.urandom(megabyte)}) if isinstance(found, Job) else found

        def complete(self, result: JobResult) -> None:
            assert len(result.files["in"]) == megabyte
            self.results[result.job] = replace(result, files={})
            self.open.discard(result.job)
            if len(self.results) in (20, 60):
                gc.collect()
                held.append(_own_memory())

    source = Heavy([job(f"j{i}", steps=0) for i in range(61)])
    run_jobs(source, make_runner(), {"score": 0.5}, Pool(2), tmp_path / "ray")
    assert len(source.results) == 61
    assert held[1] - held[0] < 40 * megabyte // 4, "the driver's memory grows with the jobs"
    written = sum(p.stat().st_size for p in (tmp_path / "ray").rglob("*") if p.is_file())
    assert written < megabyte


def _own_memory() -> int:
    """Bytes of this process that it shares with no other."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) << 10


@pytest.mark.slow
@pytest.mark.parametrize("part", ["raylet/raylet", "gcs/gcs_server"])
def test_a_private_ray_that_is_killed_ends_the_run_with_the_way_out(tmp_path: Path, part: str) -> None:
    logs = tmp_path / "logs"
    driver = Driver.start(
        os.environ, folder=tmp_path / "ray", logs=str(logs), address=None, workers=2, jobs=100, seconds=0.5
    )
    try:
        driver.wait_for("done", 3)
        # Ray's processes are in sessions of their own.
        started = psutil.Process(driver.process.pid).children(recursive=True)
        victims = [process for process in started if part in command_of(process.pid)]
        assert victims
        for process in victims:
            process.kill()
        (raised,) = driver.wait_for("raised", seconds=60)
        assert raised["kind"] == "RayEndedError"
        assert "autopeft search --resume" in raised["text"]
        assert all(event["failure"] is None for event in driver.of("done")), "no job may be blamed for it"
        assert raised["text"].endswith(f"Ray's own logs are kept in {str(logs)!r}.")
        assert {"raylet.out", "gcs_server.out"} <= {p.name for p in logs.iterdir()}
        assert any(p.name.startswith("worker-") for p in logs.iterdir())
        assert driver.finish(seconds=30) == 0
    finally:
        for pid in processes(driver.process.pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_an_error_of_the_source_ends_the_run_and_is_raised(tmp_path: Path) -> None:
    class Full(Source):
        def complete(self, result: JobResult) -> None:
            raise AutoPEFTError("the disk is full")

    source = Full([job(f"a{i}") for i in range(50)])
    with pytest.raises(AutoPEFTError, match="the disk is full"):
        run_jobs(source, make_runner(), {"score": 0.0}, Pool(1), tmp_path / "ray")
    assert len(source.left) > 40


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        pytest.param(
            Pool(1, gpus=99.0),
            "--cpus-per-trial or --gpus-per-trial",
            marks=pytest.mark.slow,
            id="larger than the machine",
        ),
        pytest.param(
            Pool(1, address="127.0.0.1:1"), r"'127\.0\.0\.1:1'", id="of a cluster that is not there"
        ),
    ],
)
def test_a_pool_that_cannot_be_is_a_clear_error(tmp_path: Path, pool: Pool, said: str) -> None:
    with pytest.raises(AutoPEFTError, match=said):
        run_jobs(Source([job("a")]), make_runner(), {}, pool, tmp_path / "ray")


def test_what_is_no_ray_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_LISTEN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(AutoPEFTError, match="does not answer as Ray does"):
            run_jobs(Source([]), make_runner(), {}, Pool(1, address=address), tmp_path / "ray")


SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.jobs import Source, job, make_runner
from autopeft.search.execution import ray_cluster, ray_executor
from autopeft.search.execution.ray_executor import Pool, run_jobs

class Loud(Source):
    def progress(self, *news):
        print("progress", flush=True)

source = Loud([job(f"j{{i}}", steps=40) for i in range(100)])
run_jobs(source, make_runner(), {{"score": 0.5}}, Pool(2), Path({scratch!r}))
print("ended", source.stopped, len(source.results) < 100, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_ends_the_run_and_the_program_goes_on(tmp_path: Path, whole_group: bool) -> None:
    tests = str(Path(__file__).parents[2])
    code = textwrap.dedent(SCRIPT.format(tests=tests, scratch=str(tmp_path / "ray")))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "progress\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {child.name() for child in started}
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
    _, left = psutil.wait_procs(started, timeout=30)
    assert not left, "processes of Ray were left behind"


@pytest.mark.slow
def test_losses_are_the_same_in_this_process_and_with_two_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever fills the stores first, and in whatever order: other seeds come in between."""
    layers = [
        [{"at": [1], "attach": [{"lora": {"rank": 2}}]}],
        [{"at": "all", "attach": [{"serial_adapter": {"bottleneck": 4}}]}],
        [{"at": [1], "attach": [{"prefix_tuning": {"length": 2}}]}],
    ]
    recipes: list[dict[str, Any]] = [{"autopeft": 2, "name": "r", "layers": block} for block in layers]
    recipes.append({"autopeft": 2, "name": "r", "model": [{"fish_mask": {"keep": 40, "samples": 4}}]})
    jobs = [
        TrainJob(f"{seed}-{i}", "trial", "x", recipe, seed=seed, steps=4)
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
        if workers == 1:
            LocalExecutor(release).run_jobs(source, execute, setup)
        else:
            run_jobs(source, execute, setup, Pool(workers), tmp_path / "ray")
        assert [r.error for r in source.results.values()] == [None] * len(jobs)
        found.append({job: (r.train_loss, r.scores) for job, r in source.results.items()})
        assert list((tmp_path / f"cache-{workers}" / "trunk").iterdir())
    assert found[0] == found[1]
    assert len({loss for loss, _ in found[0].values()}) == len(jobs)

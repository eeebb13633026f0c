"""The executor on a cluster of several nodes, each a real `ray start`; CPUs and GPUs are logical ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cluster import RayCluster, ray_cluster
from support.driving import Driver
from support.saved_model import save_backbone, write_reviews


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as running:
        yield running


@pytest.fixture
def drive(cluster: RayCluster, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(**arguments: Any) -> Driver:
        folder = tmp_path / f"driver-{len(drivers)}"
        drivers.append(
            Driver.start(cluster.environment, folder=folder, **{"address": cluster.address, **arguments})
        )
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.process.kill()
        driver.process.wait()


def node_of(event: dict[str, Any]) -> str:
    return str(event["worker"]).rpartition("@")[2]


def at_once(events: list[dict[str, Any]]) -> int:
    """Most jobs that ran at the same time."""
    return max(sum(e["begin"] <= at["begin"] < e["end"] for e in events) for at in events)


@pytest.mark.slow
def test_jobs_spread_over_nodes_and_the_run_survives_the_loss_of_one(
    cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    cluster.add()
    doomed = cluster.add()
    driver = drive(jobs=8, seconds=2.0)
    before = driver.wait_for("done", 2)
    assert len({node_of(event) for event in before}) == 2, "both nodes work from the start"
    doomed.kill()
    assert driver.finish() == 0, driver.other
    done, lost = driver.of("done"), [e for e in driver.of("done") if e["failure"]]
    assert len(done) == len({e["job"] for e in done}) == 8
    assert [e["failure"] for e in lost] == ["lost"], "the loss of a node costs the job on it and no other"
    after = {node_of(e) for e in done[done.index(lost[0]) + 1 :]}
    assert len(after) == 1
    assert driver.of("ended")


@pytest.mark.slow
def test_a_node_that_joins_later_is_used(cluster: RayCluster, drive: Callable[..., Driver]) -> None:
    cluster.add()
    driver = drive(jobs=20, seconds=2.0)
    driver.wait_for("done")
    cluster.add()
    assert driver.finish() == 0, driver.other
    assert [e["workers"] for e in driver.of("scale")] == [1, 2]
    done = driver.of("done")
    assert all(e["failure"] is None for e in done)
    assert len({node_of(e) for e in done}) == 2
    assert at_once(done) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("gpus", "most"), [(0.5, 2), (0.25, 4), (1.0, 1)])
def test_fractions_of_logical_gpus_are_honoured(
    cluster: RayCluster, drive: Callable[..., Driver], gpus: float, most: int
) -> None:
    cluster.add(cpus=6, gpus=1)
    driver = drive(jobs=8, seconds=1.5, gpus=gpus)
    assert driver.finish() == 0, driver.other
    done = driver.of("done")
    assert [e["workers"] for e in driver.of("scale")] == [most]
    assert at_once(done) == most
    assert all(e["failure"] is None for e in done)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "gcs_server", "raylet/raylet"])
def test_the_end_of_ray_is_an_error_that_the_driver_survives(
    cluster: RayCluster, drive: Callable[..., Driver], part: str
) -> None:
    cluster.add()
    cluster.add()
    # Ray ends a process that stays with it: a minute after the head is gone.
    driver = drive(jobs=100, seconds=1.0, linger=75.0)
    driver.wait_for("done", 3)
    cluster.head.kill(part)
    (raised,) = driver.wait_for("raised", seconds=60)
    assert raised["kind"] == "RayEndedError"
    assert "autopeft search --resume" in raised["text"]
    assert all(e["failure"] is None for e in driver.of("done")), "no job may be blamed for it"
    assert driver.finish() == 0, driver.other


@pytest.mark.slow
def test_a_cluster_that_is_empty_for_long_ends_the_run(
    cluster: RayCluster, drive: Callable[..., Driver]
) -> None:
    only = cluster.add()
    driver = drive(jobs=100, seconds=1.0)
    driver.wait_for("done", 2)
    only.kill()
    (raised,) = driver.wait_for("raised", seconds=180)
    assert "room for a job for a minute" in raised["text"]
    assert "autopeft search --resume" in raised["text"]


@pytest.mark.slow
def test_another_token_is_a_clear_error(cluster: RayCluster, tmp_path: Path) -> None:
    for token, said in (({"RAY_AUTH_TOKEN": "f" * 64}, "another"), ({}, "none")):
        environment = {k: v for k, v in cluster.environment.items() if k != "RAY_AUTH_TOKEN"} | token
        driver = Driver.start(environment, folder=tmp_path, address=cluster.address, jobs=1, seconds=0.1)
        (raised,) = driver.wait_for("raised", seconds=60)
        assert driver.finish() == 0
        assert f"Cannot join the Ray cluster at '{cluster.address}'" in raised["text"]
        assert "RAY_AUTH_TOKEN" in raised["text"]
        assert said in raised["text"]


@pytest.mark.slow
def test_nothing_is_left_in_the_nodes_folders(cluster: RayCluster, drive: Callable[..., Driver]) -> None:
    cluster.add()
    cluster.add()
    driver = drive(jobs=6, seconds=0.2)
    assert driver.finish() == 0, driver.other
    assert all(e["moved"] == 0.0 for e in driver.of("done")), "jobs run where their node was started"
    assert list(cluster.folder.rglob("artifacts/*")) == []


TRAINING = """
import json, os, sys
from pathlib import Path
from autopeft.assets import resolve_model
from autopeft.search.execution.ray_executor import Pool, run_jobs
from autopeft.search.core.jobs import TrainJob
from autopeft.search.execution.model_transfer import pack
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan
from support.jobs import Source


class UntilBoth(Source):
    # At least 8 short jobs, and further ones (at most 400) until two nodes have done some.
    def next(self):
        made = len(self.open) + len(self.results)
        nodes = {r.worker.rpartition("@")[2] for r in self.results.values()}
        if made < 8 or len(nodes) < 2 and made < 400:
            self.left.append(TrainJob(f"j{made}", "trial", "x", recipe, seed=made % 2, steps=4))
        return super().next()


address, gpus = sys.argv[1], float(sys.argv[2])
recipe = {"autopeft": 2, "name": "r", "layers": [{"at": [1], "attach": [{"lora": {"rank": 2}}]}]}
source = resolve_model("model")
assert not Path(source.path).is_absolute()
task = load_task("data.csv", text="body", label="verdict")
plan = TrainingPlan(steps=4, batch_size=8, max_length=32, device="auto")
setup = WorkerSetup("model", source, task, plan, threads=1, key="k")
jobs = UntilBoth([])
run_jobs(jobs, execute, setup, Pool(None, 1, gpus, address), Path("scratch"), model_files=pack(source))
print(json.dumps({k: [r.error, r.train_loss, r.worker] for k, r in jobs.results.items()}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_data_and_backbone_reach_nodes_that_have_neither(
    cluster: RayCluster, tmp_path: Path, gpus: float
) -> None:
    """The driver names the model by a path in its own working directory, which nodes do not share."""
    homes = [tmp_path / name for name in ("first", "second")]
    for home in homes:
        home.mkdir()
        cluster.add(gpus=1, environment={"AUTOPEFT_CACHE": str(home / "cache"), "HOME": str(home)})
    place = tmp_path / "driver"
    save_backbone(place / "model")
    write_reviews(place / "data.csv")
    environment = cluster.environment | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", TRAINING, cluster.address, str(gpus)],
        cwd=place,
        env=environment | {"AUTOPEFT_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    results = json.loads(found.stdout.splitlines()[-1])
    assert len(results) >= 8
    assert {error for error, _, _ in results.values()} == {None}
    assert len({loss for _, loss, _ in results.values()}) == 2, "a seed gives the same wherever it is trained"
    assert len({worker.rpartition("@")[2] for _, _, worker in results.values()}) == 2
    for home in homes:
        (arrived,) = (home / "cache" / "shipped").iterdir()
        for file in (place / "model").iterdir():
            assert (arrived / file.name).read_bytes() == file.read_bytes()
    assert not (place / "cache" / "shipped").exists()


@pytest.mark.slow
def test_a_search_goes_on_without_a_node(cluster: RayCluster, tmp_path: Path) -> None:
    """All of it: trials on both nodes, one node dies, and the winner is found, retrained and compared."""
    cluster.add()
    doomed = cluster.add()
    model, data = save_backbone(tmp_path / "model"), write_reviews(tmp_path / "data.csv", rows=240)
    out, trials = tmp_path / "run", 10
    command = [sys.executable, "-m", "autopeft", "search", "--budget", "20%", "--space", "lora", "--json"]
    command += ["--model", str(model), "--task", str(data), "--text", "body", "--label", "verdict"]
    command += ["--trials", str(trials), "--steps", "400", "--max-length", "32", "--sampler", "random"]
    environment = cluster.environment | {"AUTOPEFT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        search = subprocess.Popen(
            [*command, "--out", str(out), "--address", cluster.address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )

    def nodes() -> set[str]:
        told = [file.read_text() for file in (out / "logs").glob("trial-*.txt")]
        return {node for text in told for node in re.findall(r"^worker: .+@(\w+)$", text, re.MULTILINE)}

    try:
        deadline = time.monotonic() + 200
        while len(nodes()) < 2:
            assert search.poll() is None, "the search ended before both nodes had done something"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        doomed.kill()
        told, _ = search.communicate(timeout=400)
    finally:
        search.kill()
        search.wait()
    assert search.returncode == 0
    assert "as many workers as the cluster has room for" in (tmp_path / "said.txt").read_text()
    result = json.loads(told)
    assert sum(result["trials"].values()) == trials
    assert result["confirmed"]
    assert len(result["test"]) >= 2
    assert result["baselines"]

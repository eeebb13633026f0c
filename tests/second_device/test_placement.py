"""Trials on devices of their own: what Ray gives a worker, and a trial that its device has no room for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import acc_device
import pytest
from support.jobs import Source, job
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.errors import UsageError
from autopeft.search.core.jobs import JobResult, TrainJob
from autopeft.search.execution.ray_executor import Pool, run_jobs
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.search.planning.arguments import SearchArguments
from autopeft.search.planning.prepare import prepare
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan
from autopeft.training.processes import Processes

LORA = {"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}


def _looks(folder: str) -> Any:
    """A runner that tells which devices its worker sees; it goes to the workers by value."""

    def look(setup: Any, job: Any, on_step: Any, should_stop: Any) -> JobResult:
        import sys
        import time

        sys.path.insert(0, folder)
        import torch  # noqa: F401 (which declares the device, by its entry point)

        from autopeft import devices

        time.sleep(1.0)  # so that each worker has a job
        seen = os.environ["CUDA_VISIBLE_DEVICES"]
        result = JobResult(job.id, {"count": float(devices.count())}, worker=seen)
        result.log = seen
        return result

    return look


@pytest.mark.slow
@pytest.mark.parametrize(("share", "most", "visible"), [(1.0, 2, {"0", "1"}), (0.5, 4, {"0", "1"})])
def test_several_devices_give_several_workers_and_each_sees_its_own(
    share: float, most: int, visible: set[str], tmp_path: Path
) -> None:
    source = Source([job(f"j{i}") for i in range(6)])
    pool = Pool(4, 1, share, gpus_here=2)
    run_jobs(source, _looks(str(Path(acc_device.__file__).parent)), {}, pool, tmp_path / "ray")
    assert [r.error for r in source.results.values()] == [None] * 6
    assert {r.scores["count"] for r in source.results.values()} == {1.0}
    assert {r.worker.split("@")[0] for r in source.results.values()} == visible
    assert source.most == most


def _given(place: Path, **more: Any) -> SearchArguments:
    return SearchArguments(
        task=str(place / "reviews.csv"), text="body", label="verdict", model=str(place / "bert"),
        budget="20%", space="lora", max_length=24, precision="fp32", pooling="own", **more,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    save_backbone(tmp_path / "bert")
    write_reviews(tmp_path / "reviews.csv")
    return tmp_path


def test_a_search_asks_for_shares_of_what_is_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(acc_device.COUNT, "2")
    cpus = max(1, len(os.sched_getaffinity(0)))
    ready = prepare(_given(place))
    assert (ready.plan.device, ready.gpus) == ("acc", 0.25)
    assert ready.effort.name == "normal"
    assert prepare(_given(place, gpus_per_trial=1.0)).workers == min(2, cpus)
    off = prepare(_given(place, device="cpu"))
    assert (off.plan.device, off.gpus, off.effort.name) == ("cpu", 0.0, "quick")
    here = prepare(_given(place, device="acc:1", workers=0))
    assert (here.plan.device, here.workers) == ("acc:1", 0)


def test_each_process_needs_a_device() -> None:
    with pytest.raises(UsageError, match="100 processes need a GPU each, and this process sees 1"):
        Processes(100, device="acc")


def test_a_trial_without_room_on_its_device_takes_fewer_rows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = str(place / "bert"), str(place / "reviews.csv")
    task = load_task(data, text="body", label="verdict")
    plan = TrainingPlan(steps=3, batch_size=16, max_length=24, device="acc", shortcuts=False)
    setup = WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(place))
    todo = TrainJob(id="j", kind="trial", label="x", recipe=LORA, steps=3)

    def run() -> JobResult:
        return execute(setup, todo, lambda step, loss: None, lambda: False)

    try:
        whole = run()
        refused = acc_device.limit(3_000)
        fewer = run()
    finally:
        acc_device.limit(None)
        release()
    assert (whole.error, fewer.error) == (None, None)
    assert fewer.train_loss == pytest.approx(whole.train_loss, abs=1e-5)
    assert refused

"""The executor in this process: what it tells the source, when it ends, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.jobs import Source, job
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.errors import AutoPEFTError
from autopeft.search.core.jobs import Done, Job, JobResult, TrainJob
from autopeft.search.execution import local_executor, worker
from autopeft.search.execution.local_executor import LocalExecutor
from autopeft.search.execution.worker import WorkerSetup, execute, release
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    setup: Any, job: Job, on_step: Callable[[int, float], None], should_stop: Callable[[], bool]
) -> JobResult:
    """Steps that take no time, as a training that heeds `should_stop` after each of them."""
    for step in range(job.steps):
        on_step(step + 1, 0.5)
        if should_stop():
            return JobResult(job.id, error="stopped", failure="stopped")
    return JobResult(job.id, {"select": setup})


def test_jobs_run_one_by_one_in_this_thread() -> None:
    class Watched(Source):
        threads = set[int]()  # noqa: RUF012

        def next(self) -> Job | Done | None:
            self.threads.add(threading.get_ident())
            return super().next()

    source, ended = Watched([job(f"a{i}") for i in range(3)]), list[int]()
    LocalExecutor().run_jobs(source, run, 0.25, ending=lambda: ended.append(len(source.results)))
    assert [r.score for r in source.results.values()] == [0.25] * 3
    assert (source.most, source.workers, ended) == (1, 1, [3])
    assert source.threads == {threading.get_ident()}


def test_the_source_is_told_of_progress_once_a_second() -> None:
    clock = Clock()

    def slow(setup: Any, job: Job, on_step: Callable[[int, float], None], *_: Any) -> JobResult:
        for step in range(1, 9):
            clock.now += 0.5
            on_step(step, step / 10)
        return JobResult(job.id, {"select": 1.0})

    source = Source([job("a")])
    LocalExecutor(clock=clock).run_jobs(source, slow, None)
    assert source.steps == [("a", 1, 0.1), ("a", 3, 0.3), ("a", 5, 0.5), ("a", 7, 0.7)]


@pytest.mark.parametrize("method", ["next", "progress", "complete", "scale"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), AutoPEFTError("no more")])
def test_an_error_of_the_source_ends_the_run_and_is_raised(
    method: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise error

    source, calls = Source([job("a"), job("b")]), list[str]()
    monkeypatch.setattr(source, method, fail)
    with pytest.raises(AutoPEFTError, match=r"run folder cannot be used.*No space|^no more$"):
        LocalExecutor(lambda: calls.append("released")).run_jobs(
            source, run, 0.5, ending=lambda: calls.append("ending")
        )
    assert calls == ["released"]
    assert source.results == {}
    assert len(source.left) == {"scale": 2, "next": 2}.get(method, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_the_source_once(number: signal.Signals) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    seen, ended = list[int](), list[bool]()

    def signalled(setup: Any, job: Job, on_step: Any, should_stop: Callable[[], bool]) -> JobResult:
        return run(setup, job, lambda step, loss: stepped(on_step, step), should_stop)

    def stepped(on_step: Callable[[int, float], None], step: int) -> None:
        seen.append(step)
        on_step(step, 0.5)
        if step == 3:
            os.kill(os.getpid(), number)

    source = Source([job("a", steps=10), job("b")])
    LocalExecutor().run_jobs(source, signalled, 0.5, ending=lambda: ended.append(True))
    assert (source.stopped, seen, ended) == (True, [1, 2, 3], [True])
    assert [(r.job, r.failure) for r in source.results.values()] == [("a", "stopped")]
    assert [j.id for j in source.left] == ["b"]
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_job_that_ends_in_time_after_an_interruption_is_not_reminded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else SIGTERM comes when nobody hears it any more, and ends the process."""
    reminded = list[bool]()
    monkeypatch.setattr(local_executor, "STOP_SECONDS", 0.3)
    monkeypatch.setattr(local_executor, "remind", lambda: reminded.append(True))

    def ends_between_two_looks(setup: Any, job: Job, *args: Any) -> JobResult:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.35)
        return JobResult(job.id, {"select": 0.5})

    source, threads = Source([job("a")]), threading.active_count()
    LocalExecutor().run_jobs(source, ends_between_two_looks, None)
    assert threading.active_count() == threads
    time.sleep(0.5)
    assert (source.stopped, set(source.results), reminded) == (True, {"a"}, [])


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    def stubborn(*args: Any) -> JobResult:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # no echo of the first one any more
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second was not heeded")

    source, released = Source([job("a")]), list[bool]()
    with pytest.raises(KeyboardInterrupt):
        LocalExecutor(lambda: released.append(True)).run_jobs(source, stubborn, None)
    assert released == [True]


def test_what_a_job_prints_is_in_its_log_and_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    class Loud(Source):
        def progress(self, job: str, step: int, loss: float) -> None:
            print("a progress bar", file=sys.stderr)

    def printing(setup: Any, job: Job, on_step: Any, should_stop: Any) -> JobResult:
        on_step(1, 0.5)
        print(f"said by {job.id}")
        print("a warning", file=sys.stderr)
        assert sys.stderr.isatty() is False
        return JobResult(job.id, {"select": 1.0}, log="Traceback: none")

    source, before = Loud([job("a"), job("b")]), (sys.stdout, sys.stderr)
    LocalExecutor().run_jobs(source, printing, None)
    assert (sys.stdout, sys.stderr) == before
    log = source.results["b"].log
    for part in ("Traceback: none", "stdout:\nsaid by b", "stderr:\na warning", f"process: {os.getpid()}"):
        assert part in log
    assert f"torch {torch.__version__.partition('+')[0]}" in log
    assert "said by a" not in log
    assert "progress bar" not in log
    out, err = capfd.readouterr()
    assert out == "said by a\nsaid by b\n"
    assert err == "a progress bar\na warning\n" * 2


def test_the_process_is_left_as_it_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model = str(save_backbone(tmp_path / "model"))
    task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
    plan = TrainingPlan(steps=3, batch_size=8, max_length=32, device="cpu")
    setup = WorkerSetup(model, resolve_model(model), task, plan, threads=1, key="k")
    good, bad = (
        {"name": "x", "layers": [{"attach": [{"lora": options}]}]}
        for options in ({"rank": 2}, {"sites": ["qq"]})
    )
    inside = list[int]()

    class Watched(Source):
        def progress(self, job: str, step: int, loss: float) -> None:
            inside.append(torch.get_num_threads())

    source = Watched(
        [TrainJob("good", "trial", "x", good, steps=3), TrainJob("bad", "trial", "x", bad, steps=3)]
    )
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(3)
        LocalExecutor(release).run_jobs(source, execute, setup)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert set(inside) == {1}
    assert torch.equal(torch.get_rng_state(), random)
    assert worker._LOADED == {}
    assert source.results["good"].error is None
    assert "RecipeError" in source.results["bad"].log
    assert "Traceback (most recent call last)" in source.results["bad"].log

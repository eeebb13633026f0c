from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.searching import Events, Stage, rank_of
from support.tracking import MemoryTracker, confirm_record, play, trial_job, trial_record

from autopeft.errors import UsageError
from autopeft.runs.folder import RunFolder
from autopeft.search.controller.controller import Controller
from autopeft.search.core.events import SilentReporter
from autopeft.search.core.jobs import Job, JobResult
from autopeft.search.tracking import reporter as module
from autopeft.search.tracking.background import BackgroundTracker
from autopeft.search.tracking.reporter import Tracking, parse_trackers, track


def listening(*trackers: MemoryTracker, said: list[str] | None = None, **more: Any) -> Tracking:
    backgrounds = [BackgroundTracker(f"memory-{i}", tracker.opened) for i, tracker in enumerate(trackers)]
    return Tracking(SilentReporter(), backgrounds, ([] if said is None else said).append, **more)


# Names
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "none", " None "])
def test_nothing_is_logged_unless_asked_for(text: str | None) -> None:
    assert parse_trackers(text) == ()


def test_names_in_any_order_and_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRACKERS", dict.fromkeys(module.TRACKERS, ("json", "json")))
    assert parse_trackers(" MLflow,tensorboard,mlflow") == ("tensorboard", "mlflow")


def test_an_unknown_name_is_refused_with_what_was_meant() -> None:
    with pytest.raises(UsageError, match=r"'tensorbord'.*'tensorboard'.*mlflow, wandb"):
        parse_trackers("tensorbord")


def test_what_is_not_installed_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"mlflow": ("no_such_module", "mlflow-skinny"), "wandb": ("no_such_either", "wandb")}
    monkeypatch.setattr(module, "TRACKERS", module.TRACKERS | gone)
    with pytest.raises(UsageError, match=r"mlflow and wandb .*pip install mlflow-skinny wandb\."):
        parse_trackers("wandb,tensorboard,mlflow")


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_by_a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "TRACKERS", {"wandb": ("left_by_a_tracker", "wandb")})
    with pytest.raises(UsageError, match="pip install wandb"):
        parse_trackers("wandb")


@pytest.mark.slow
def test_names_are_read_without_ray() -> None:
    code = (
        "import sys; from autopeft.search.tracking.reporter import parse_trackers; "
        "parse_trackers('tensorboard'); "
    )
    subprocess.run([sys.executable, "-c", f"{code} assert 'ray' not in sys.modules"], check=True)


# Entries
# ----------------------------------------------------------------------------------------------------------


def test_a_trial_is_one_entry_from_rung_to_rung() -> None:
    tracker = MemoryTracker()
    tracking = listening(tracker)
    play(tracking)
    tracking.close()
    first = [call for call in tracker.calls if call[1:2] == ("trial-0",)]
    assert [call[0] for call in first if call[0] != "report"] == ["start", "rest", "start", "end"]
    assert [call[2] for call in first if call[0] == "report"] == [10, 20, 30, 40, 80, 90]
    assert [call[3]["score"] for call in first if call[0] == "report" and "score" in call[3]] == [0.75]
    ended = [call[1:] for call in tracker.calls if call[0] == "end"]
    assert ended == [
        ("trial-0", "complete"),
        ("trial-1", "stopped"),
        ("confirm-finalist-0-seed-7", "complete"),
    ]
    assert tracker.closed


def test_every_event_is_passed_on() -> None:
    events, tracker = Events(), MemoryTracker()
    tracking = Tracking(events, [BackgroundTracker("memory", tracker.opened)], print)
    tracking.on_phase("search", 2)
    play(tracking)
    tracking.close()
    quiet = Events()
    play(Tracking(quiet, [], print))
    assert events.seen[1:] == quiet.seen
    assert events.seen[0] == ("phase", "search", 2)
    assert len(quiet.records) == 5


def test_what_was_logged_by_an_earlier_process_is_not_logged_again() -> None:
    tracker = MemoryTracker()
    tracking = listening(tracker, before={"confirm-0-s7"})
    tracking.on_trial_end(confirm_record(kept=True), None, None)
    # Stopped at the rung that it had reached in an earlier process: it had not ended there.
    tracking.on_trial_end(trial_record(4, "stopped", {"30": 0.5}), None, None)
    tracking.close()
    assert [call[:2] for call in tracker.calls] == [
        ("open",),
        ("start", "trial-4"),
        ("report", "trial-4"),
        ("end", "trial-4"),
    ]


def test_what_is_open_at_the_end_is_put_away() -> None:
    tracker = MemoryTracker()
    tracking = listening(tracker)
    for number in (0, 1):
        tracking.on_trial_start(trial_job(number, until=30), None)
    tracking.on_trial_end(trial_record(0, "paused", {"30": 0.5}), None, None)
    tracking.close()
    tracking.close()
    assert [call[1:] for call in tracker.calls if call[0] == "rest"] == [
        ("trial-0", False),
        ("trial-0", True),
        ("trial-1", True),
    ]
    assert tracker.closed


def test_a_lost_job_is_not_reported_twice() -> None:
    tracker = MemoryTracker()
    tracking = listening(tracker)
    for _ in range(2):
        tracking.on_trial_start(trial_job(0), None)
        for step in (10, 20):
            tracking.on_step(trial_job(0), step, 0.5, None)
    tracking.close()
    assert [call[2] for call in tracker.calls if call[0] == "report"] == [10, 20]
    assert sum(call[0] == "start" for call in tracker.calls) == 1


# Failures
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["open", "start", "report", "rest", "end"])
def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(failing: str) -> None:
    bad, good, said = MemoryTracker(failing=failing), MemoryTracker(), list[str]()
    tracking = listening(bad, good, said=said)
    play(tracking)
    tracking.close()
    assert said == ["Nothing more is logged with memory-0: ConnectionError: the server is gone"]
    assert sum(call[0] == "end" for call in good.calls) == 3
    assert good.closed
    assert not bad.closed


def test_a_search_goes_on_without_a_tracker_that_fails(make_stage: Callable[..., Stage]) -> None:
    said = list[str]()
    tracking = listening(MemoryTracker(failing="report"), said=said)
    stage = make_stage()
    plain = stage.controller
    controller = Controller(
        plain.strategy, plain.effort, [], tracking, stage.checkpoints, stage.records.append, seed=0, workers=2
    )

    def outcome(job: Job) -> JobResult:
        controller.progress(job.id, 1, 0.5)
        time.sleep(0.01)
        return JobResult(job.id, {"select": rank_of(job) / 100, "test": 0.1})

    stage.controller = controller
    stage.play(outcome)
    tracking.close()
    assert len(said) == 1
    assert sum(record.state == "complete" for record in stage.records) >= 5


def test_a_tracker_that_hangs_is_waited_for_no_longer_than_said() -> None:
    gate, opened = threading.Event(), threading.Event()

    @contextmanager
    def hanging() -> Iterator[MemoryTracker]:
        gate.wait(600)
        opened.set()
        yield MemoryTracker()

    said = list[str]()
    tracking = Tracking(SilentReporter(), [BackgroundTracker("slow", hanging)], said.append)
    play(tracking)
    tracking.close(0.1)
    assert not opened.is_set(), "it hangs still, and both came back"
    assert [line.partition(" to take")[0] for line in said] == [
        "Waiting for slow",
        "slow did not take everything; what is missing is in the run folder.",
    ]
    gate.set()


def test_ctrl_c_ends_the_waiting() -> None:
    gate, taken, said = threading.Event(), threading.Event(), list[str]()
    tracker = MemoryTracker()
    background = BackgroundTracker("slow", tracker.opened)
    background.tell(lambda t: gate.wait(600) and taken.set())
    tracking = Tracking(SilentReporter(), [background], said.append)
    threading.Timer(0.3, signal.pthread_kill, [threading.get_ident(), signal.SIGINT]).start()
    tracking.close(600)
    assert not taken.is_set(), "the tracker hangs still"
    assert [line.split(" take")[0] for line in said] == ["slow did not"]
    gate.set()


def test_a_tracker_that_gets_on_is_waited_for() -> None:
    tracker, said = MemoryTracker(), list[str]()
    background = BackgroundTracker("slow", tracker.opened)
    for _ in range(8):
        background.tell(lambda t: time.sleep(0.1))
    Tracking(SilentReporter(), [background], said.append).close(0.3)
    assert tracker.closed
    assert len(said) == 1


def test_without_anyone_to_tell_a_failure_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from autopeft.search.tracking import ray_callbacks as trackers

    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(trackers, "open_tracker", lambda *place: MemoryTracker(failing="open").opened())
    tracking = track(("mlflow",), RunFolder(tmp_path), SilentReporter(), None)
    with caplog.at_level(logging.WARNING, "autopeft"):
        tracking.close()
    (record,) = caplog.records
    assert "mlflow: ConnectionError: the server is gone" in record.message

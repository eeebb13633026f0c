"""Ray's callbacks for real: what they write is read back; MLflow and W&B where they are installed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.faults import Searching
from support.tracking import (
    confirm_job,
    confirm_record,
    hparams,
    play,
    scalars,
    trial_job,
    trial_record,
    wandb_records,
)

from autopeft.runs.folder import RunFolder
from autopeft.search.core.events import SilentReporter
from autopeft.search.core.jobs import DONE, Done, JobResult
from autopeft.search.execution.ray_executor import Pool, run_jobs
from autopeft.search.tracking.background import BackgroundTracker
from autopeft.search.tracking.ray_callbacks import open_tracker
from autopeft.search.tracking.reporter import Tracking

NAMES = {"trial-0", "trial-1", "confirm-finalist-0-seed-7"}


def tracking(name: str, folder: Path, said: list[str], run: str = "abc12345") -> Tracking:
    return Tracking(
        SilentReporter(), [BackgroundTracker(name, partial(open_tracker, name, folder, run))], said.append
    )


def log(name: str, folder: Path, *events: Callable[[Tracking], None]) -> None:
    """Log some events with a tracker of a process's own for each."""
    for some in events:
        said = list[str]()
        told = tracking(name, folder, said)
        some(told)
        told.close()
        assert all(line.startswith("Waiting for") for line in said)


def begin(told: Tracking) -> None:
    """Two trials, cut off: one stands on a rung, the other runs."""
    for number in (0, 1):
        told.on_trial_start(trial_job(number, until=30), None)
        told.on_step(trial_job(number), 20, 0.4, None)
    told.on_trial_end(trial_record(0, "paused", {"30": 0.5}), None, None)


def go_on(told: Tracking) -> None:
    """The first goes on to its end; a final run."""
    told.on_trial_start(trial_job(0), None)
    told.on_step(trial_job(0), 60, 0.3, None)
    told.on_trial_end(trial_record(0, "complete", {"30": 0.5, "90": 0.75}, score=0.75), None, None)
    told.on_trial_start(confirm_job(), None)
    told.on_trial_end(confirm_record(), None, None)


def test_tensorboard_files_hold_each_trial_once(tmp_path: Path) -> None:
    log("tensorboard", tmp_path, play)
    folders = {f.name: f for f in (tmp_path / "tensorboard").iterdir()}
    assert set(folders) == NAMES
    first = scalars(folders["trial-0"])
    assert [step for step, _ in first["loss"]] == [10, 20, 40, 80]
    assert first["rung_score"] == [(30, 0.5), (90, 0.75)]
    assert first["score"] == [(90, 0.75)]
    assert first["deployed"][-1] == (90, 120)
    assert first["seconds"][-1] == (90, 3)
    assert "score" not in scalars(folders["trial-1"])
    (told,) = hparams(folders["trial-0"])
    assert told["lora.rank"] == 4
    assert told["lora.at"] == "0,2"
    assert told["state"] == "complete"
    assert hparams(folders["trial-1"])[0]["state"] == "stopped"


def test_tensorboard_goes_on_with_a_search_that_was_cut_off(tmp_path: Path) -> None:
    log("tensorboard", tmp_path, begin)
    folder = tmp_path / "tensorboard" / "trial-0"
    assert scalars(folder)["loss"] == [(20, 0.4)]
    assert hparams(folder) == []
    log("tensorboard", tmp_path, go_on)
    assert scalars(folder)["loss"] == [(20, 0.4), (60, 0.3)]
    assert len(hparams(folder)) == 1
    assert {f.name for f in (tmp_path / "tensorboard").iterdir()} == NAMES


def test_where_nothing_can_be_written_the_tracker_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where a folder belongs")
    said = list[str]()
    told = tracking("tensorboard", tmp_path, said)
    play(told)
    told.close()
    assert len(said) == 1
    assert "tensorboard: NotADirectoryError" in said[0]


def test_an_mlflow_store_holds_each_trial_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    log("mlflow", tmp_path, play)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name(tmp_path.name)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == NAMES
    first = runs["trial-0"]
    assert first.data.params["lora.rank"] == "4"
    assert first.data.params["kind"] == "trial"
    assert first.data.metrics["score"] == 0.75
    assert first.data.metrics["share"] == 0.012
    assert [m.step for m in client.get_metric_history(first.info.run_id, "loss")] == [10, 20, 40, 80]
    assert {name: run.data.tags["state"] for name, run in runs.items()} == {
        "trial-0": "complete",
        "trial-1": "stopped",
        "confirm-finalist-0-seed-7": "complete",
    }


def test_mlflow_goes_on_with_a_search_that_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    uri = f"sqlite:///{tmp_path}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    log("mlflow", tmp_path / "run", begin, go_on)
    # A search of the same name, in the same store: its trials are others.
    other = tracking("mlflow", tmp_path / "run", [], run="def67890")
    begin(other)
    other.close()
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    client = mlflow.MlflowClient(uri)
    (run,) = [e for e in client.search_experiments() if e.name == "run"]
    found = client.search_runs([run.experiment_id], "tags.autopeft_run = 'abc12345'")
    assert {r.info.run_name for r in found} == NAMES
    assert len(found) == 3
    assert {r.info.status for r in found} == {"FINISHED"}
    assert len(client.search_runs([run.experiment_id])) == 5


class Nothing:
    """A source without jobs: Ray is started and ended around what is tested."""

    stopped = False

    def next(self) -> Done:
        return DONE

    def progress(self, job: str, step: int, loss: float) -> None: ...

    def complete(self, result: JobResult) -> None: ...

    def interrupt(self) -> None: ...

    def scale(self, workers: int) -> None: ...


def on_ray(folder: Path, ending: Callable[[], None]) -> None:
    run_jobs(Nothing(), print, None, Pool(1), folder / "ray", ending=ending)


def test_wandb_offline_holds_each_trial_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    folder = tmp_path / "run"
    folder.mkdir()
    on_ray(tmp_path, partial(log, "wandb", folder, play))
    files = {f.stem.removeprefix("run-abc12345-"): f for f in folder.glob("wandb/offline-run-*/*.wandb")}
    assert set(files) == NAMES
    records = list(wandb_records(files["trial-0"]))
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name) == ("mine", "run", "trial-0")
    config = {i.key or i.nested_key[0]: json.loads(i.value_json) for i in run.config.update}
    assert config["lora.rank"] == 4
    rows = [
        {i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    assert [row["_step"] for row in rows] == [10, 20, 30, 40, 80, 90]
    assert rows[-1]["score"] == 0.75
    states = [i.value_json for r in records for i in r.config.update if "state" in (i.key, *i.nested_key)]
    assert states == ['"complete"']


def test_wandb_without_a_key_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    said = list[str]()
    told = tracking("wandb", tmp_path, said)
    play(told)
    told.close()
    assert len(said) == 1
    assert "No WandB API key" in said[0]


@pytest.mark.slow
def test_a_search_is_logged_over_ctrl_c_and_resume(tmp_path: Path) -> None:
    search = Searching(tmp_path, more=("--log", "tensorboard"))
    try:
        search.start()
        while not any(record["state"] == "complete" for record in RunFolder(search.run).lines()):
            assert not search.ended, search.out
            time.sleep(0.2)
        search.driver.send_signal(signal.SIGINT)
        out = search.end()
        assert "Traceback" not in out
        assert search.result()["interrupted"], out
        assert all(scalars(f) for f in (search.run / "tensorboard").iterdir())
        assert "autopeft search --resume disk/run --log tensorboard" in out
        search.start("--log", "tensorboard")
        out = search.end()
        assert not search.result()["interrupted"], out
        assert_all_is_logged(search.run)
    finally:
        search.close()


def assert_all_is_logged(folder: Path) -> None:
    run = RunFolder(folder)
    folders = {f.name: f for f in (folder / "tensorboard").iterdir()}
    trials = {f"trial-{record['number']}": record for record in run.lines()}
    assert {name for name in folders if name.startswith("trial-")} == set(trials)
    for name, record in trials.items():
        assert hparams(folders[name])[-1]["state"] == record["state"]
        assert len(hparams(folders[name])) == 1
        if record["state"] == "complete":
            assert scalars(folders[name])["score"] == [(record["steps"], round(record["score"], 6))]
    finals = [line for line in run.lines("finals.jsonl") if line["state"] == "complete"]
    assert len(folders) - len(trials) == len({line["label"] for line in finals}) == len(finals)
    for word in ("confirm-finalist-", "baseline-head", "test-of-finalist-"):
        assert any(name.startswith(word) for name in folders)

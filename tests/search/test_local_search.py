"""A whole search in this process: the same as on Ray, without it, and interrupted and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from support.saved_model import small_search

from autopeft.errors import UsageError
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search import api
from autopeft.search.api import search
from autopeft.search.execution.logged_jobs import handed_out


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return small_search(tmp_path, trials=6, steps=120, baselines="head", fresh_baselines=True)


def told(records: Iterable[TrialRecord]) -> list[Any]:
    """Everything of records but when and where they were made."""
    return [
        (r.label, r.state, r.recipe, r.hash, r.score, r.scores, r.rungs, r.train_loss, r.counts, r.seed)
        for r in records
    ]


@pytest.mark.slow
def test_it_is_the_same_search_as_with_one_worker_of_ray(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Trials, rungs, checkpoints that trials go on from, finals: all in the same order, to the last bit."""
    found = {n: search(**{**arguments, "workers": n, "out": tmp_path / f"run-{n}"}) for n in (0, 1)}
    here, ray = found[0], found[1]
    assert told(here.trials) == told(ray.trials)
    assert {r.state for r in here.trials} >= {"complete", "stopped"}, "no trial was stopped at a rung"
    assert (here.winner, here.counts, here.front) == (ray.winner, ray.counts, ray.front)
    assert (here.select, here.test, here.steps) == (ray.select, ray.test, ray.steps)
    assert here.constant is not None
    assert here.constant == ray.constant
    assert here.to_dict()["constant"]["name"] == "always 'no'"
    assert [(b.name, b.select, b.test) for b in here.baselines] == [
        (b.name, b.select, b.test) for b in ray.baselines
    ]
    runs = [load_run(tmp_path / f"run-{n}") for n in (0, 1)]
    jobs = [[(entry.job, entry.carried) for entry in handed_out(run)] for run in runs]
    assert jobs[0] == jobs[1]
    assert any(carried for job, carried in jobs[0] if job.kind == "trial"), "none went on from a checkpoint"
    for run, names in zip(runs, jobs, strict=True):
        assert {p.stem for p in run.logs.glob("*.txt")} == {job.id for job, _ in names}
        assert not (run.logs / "ray").exists()


SCRIPT = """
import json, sys
from autopeft.search.api import search
from autopeft.search.core.events import SilentReporter

class Loud(SilentReporter):
    def on_trial_end(self, record, best, remaining):
        print("end", record.label, record.state, flush=True)

result = search(reporter=Loud(), **json.loads(sys.argv[1]))
print(json.dumps([result.interrupted, "ray" in sys.modules, len(result.trials), result.test]), flush=True)
"""


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_found_and_it_goes_on(arguments: dict[str, Any], tmp_path: Path) -> None:
    options = json.dumps({**arguments, "trials": 7, "steps": 100, "fidelity": "none", "workers": 0})
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, options], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "end trial 0 complete\n"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read().splitlines()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    interrupted, ray, trials, test = json.loads(rest[-1])
    assert (interrupted, ray, test) == (True, False, [])
    assert trials < 7
    run = load_run(arguments["out"])
    before = {line["number"]: line for line in run.lines() if line["state"] == "complete"}
    assert before
    assert (run.winner / "weights.safetensors").is_file()
    stopped = [line for line in run.lines() if line["state"] == "interrupted"]
    assert not any(line["state"] == "failed" for line in run.lines())
    assert [line["failure"] for line in stopped] in (["stopped"], []), "the job that ran, if one did"
    for line in stopped:
        assert "stopped" in (run.logs / f"trial-{line['number']}.txt").read_text()

    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "search", "--resume", str(run.path), "--workers", "0"],
        env=dict(os.environ), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    after = {line["number"]: line for line in run.lines() if line["state"] == "complete"}
    assert before.items() <= after.items()
    assert len(after) == 7
    assert not run.result()["interrupted"]
    assert len(run.result()["test"]) == 1


@pytest.mark.parametrize("name", ["latest", pytest.param("data", marks=pytest.mark.slow)])
def test_a_name_means_a_run_before_this_one(arguments: dict[str, Any], tmp_path: Path, name: str) -> None:
    """The new run is the latest one too, and its own name has the part `data` too."""
    small = {**arguments, "workers": 0, "trials": 1, "steps": 4, "baselines": "none", "out": None}
    small["runs"] = str(tmp_path / "runs")
    first = search(**small)
    second = search(**{**small, "warm_start": (name,), "seed": 1})
    assert second.trials[0].recipe == first.winner.to_dict()
    kept = json.loads((second.run / "manifest.json").read_text())["arguments"]["warm_start"]
    assert [Path(path).name for path in kept] == [first.run.name]  # `--resume` begins with the same run


def test_a_name_of_no_run_is_refused_before_anything_is_prepared(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "prepare", lambda *_: pytest.fail("something was prepared"))
    with pytest.raises(UsageError, match="'data' is neither a run") as caught:
        search(**{**arguments, "out": None, "runs": str(tmp_path / "runs"), "warm_start": ("data",)})
    assert "-data-" not in str(caught.value), "the run that does not begin is none to begin with"
    assert not (tmp_path / "runs").exists()

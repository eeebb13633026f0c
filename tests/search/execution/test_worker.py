from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone, write_reviews

from autopeft.assets import resolve_model
from autopeft.search.core.jobs import JobResult, ScoreJob, TrainJob, UntrainedJob
from autopeft.search.execution import deadline, runners, worker
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan

LORA = {"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}], "training": {"learning_rate": 0.01}}


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerSetup:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model = str(save_backbone(tmp_path / "model"))
    task = load_task(str(write_reviews(tmp_path / "data.csv")), text="body", label="verdict")
    plan = TrainingPlan(steps=1, batch_size=8, max_length=32)
    return WorkerSetup(model, resolve_model(model), task, plan, threads=1, key=str(tmp_path))


def run(setup: WorkerSetup, **more: Any) -> JobResult:
    fields: dict[str, Any] = {"id": "j", "kind": "trial", "label": "x", "recipe": LORA, "steps": 4, **more}
    job = ScoreJob(**fields) if fields["kind"] == "test" else TrainJob(**fields)
    return execute(setup, job, lambda step, loss: None, lambda: False)


def backbone(setup: WorkerSetup) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in worker._LOADED[setup.key].backbone(setup).state_dict().items()}


def test_a_trial_trains_scores_and_leaves_no_trace(setup: WorkerSetup) -> None:
    first = run(setup, splits=("select", "test"))
    before = backbone(setup)
    second = run(setup, splits=("select", "test"))
    assert first.error is None
    assert first.scores == second.scores
    assert first.scores.keys() == {"select", "test"}
    assert first.counts is not None
    assert first.counts["head"] > 0
    after = backbone(setup)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_kept_weights_score_the_same_when_they_come_back(setup: WorkerSetup) -> None:
    trained = run(setup, steps=150, splits=("select", "test"), keep_above=-math.inf)
    assert "weights.safetensors" in trained.files
    again = run(setup, kind="test", steps=0, splits=("test", "select"), files=trained.files, seed=99)
    assert again.error is None
    assert again.scores == pytest.approx(trained.scores)
    assert again.scores["select"] > 0.6, "nothing was learnt, so that equal scores mean little"


def test_weights_are_kept_only_above_the_threshold(setup: WorkerSetup) -> None:
    assert run(setup, keep_above=1.0).files == {}
    assert run(setup, keep_above=None).files == {}


def test_a_job_without_its_weights_says_so(setup: WorkerSetup) -> None:
    assert "weights of this run are gone" in str(run(setup, kind="test", files=None).error)


def test_a_bad_recipe_fails_its_job_alone(setup: WorkerSetup) -> None:
    bad = run(setup, recipe={"name": "x", "layers": [{"attach": [{"lora": {"sites": ["qq"]}}]}]})
    assert bad.failure == "failed"
    assert "qq" in str(bad.error)
    assert run(setup).error is None


def test_divergence_is_told_apart(setup: WorkerSetup) -> None:
    wild = {**LORA, "training": {"learning_rate": 10.0, "warmup": 0.0}}
    wild["layers"] = [{"attach": [{"lora": {"rank": 8, "alpha": 4096.0}}]}]
    result = run(setup, recipe=wild, steps=200)
    if result.error is not None:  # a tiny model may survive it, but must never answer with what is not finite
        assert result.failure == "non_finite"
    assert all(math.isfinite(s) for s in result.scores.values())
    assert run(setup).error is None


def test_memory_and_unknown_errors_are_results_and_reload_the_backbone(
    setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(setup).error is None
    for error, failure in ((MemoryError("no room"), "memory"), (RuntimeError("boom"), "failed")):
        with monkeypatch.context() as patch:

            def explode(*args: Any, error: BaseException = error, **kwargs: Any) -> None:
                raise error

            patch.setattr(runners, "run_trial", explode)
            result = run(setup)
        assert result.failure == failure
        assert str(error) in str(result.error)
        assert result.log.startswith("Traceback (most recent call last):") or "With fewer rows" in result.log
        assert f"{type(error).__name__}: {error}" in result.log
        assert "in explode" in result.log
        assert setup.key not in worker._LOADED
    assert run(setup).error is None


def test_an_error_that_was_overcome_is_in_the_log(
    setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, rows = runners.run_trial, list[int]()

    def short_once(*args: Any, **more: Any) -> Any:
        rows.append(args[3].micro_rows)
        if len(rows) == 1:
            raise MemoryError("no room")
        return real(*args, **more)

    monkeypatch.setattr(runners, "run_trial", short_once)
    result = run(setup)
    assert result.error is None
    assert rows == [8, 2]
    assert result.log.startswith("With fewer rows at once again, after this:\nTraceback")
    assert result.log.rstrip().endswith("MemoryError: no room")


SHORT_OF_MEMORY = """
import gc, json, resource, sys
from dataclasses import replace
from pathlib import Path
import torch
from autopeft.assets import resolve_model
from autopeft.search.core.jobs import TrainJob
from autopeft.search.execution.worker import WorkerSetup, execute
from autopeft.tasks import load_task
from autopeft.training import TrainingPlan

folder, rows, room = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
task = load_task(str(folder / "data.csv"), text="body", label="verdict")
plan = TrainingPlan(steps=1, batch_size=rows, eval_batch_size=8, max_length=32, device="cpu")
setup = WorkerSetup("model", resolve_model(str(folder / "model")), task, plan, threads=1, key="k")
recipe = {"name": "x", "layers": [{"attach": [{"lora": {"rank": 2}}]}]}

def run(batch):
    job = TrainJob("j", "trial", "x", recipe, steps=1)
    return execute(replace(setup, plan=replace(plan, batch_size=batch)), job, lambda *a: None, lambda: False)

assert run(8).error is None
gc.collect()
taken = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmSize"))) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (room << 20),) * 2)
found = run(rows)
print(json.dumps([found.error, found.failure, found.scores, found.log]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
@pytest.mark.slow
@pytest.mark.parametrize(("room", "suffices"), [(100, True), (1, False)])
def test_where_memory_is_really_short_fewer_rows_are_taken_at_once(
    tmp_path: Path, room: int, suffices: bool
) -> None:
    """The process may address so many more MiB; a batch wants some 150, a quarter of it less than 80.

    The model is loaded again without threads, for whose stacks there is no room.
    """
    save_backbone(tmp_path / "model")
    write_reviews(tmp_path / "data.csv", rows=4000)
    alone = {"MALLOC_ARENA_MAX": "1", "HF_DEACTIVATE_ASYNC_LOAD": "1"}
    environment = {**os.environ, "AUTOPEFT_CACHE": str(tmp_path / "cache"), **alone}
    found = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path), "2048", str(room)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    error, failure, scores, log = json.loads(found.stdout.splitlines()[-1])
    if suffices:
        assert error is None
        assert scores.keys() == {"select"}
    else:
        assert failure == "memory"
        assert "Out of memory" in error
        assert "With fewer rows at once again, after this:\nTraceback" in log


def test_stopping_ends_a_job_at_the_next_step(setup: WorkerSetup) -> None:
    seen: list[int] = []
    job = TrainJob("j", "trial", "x", LORA, steps=1000)
    result = execute(setup, job, lambda step, loss: seen.append(step), lambda: len(seen) >= 3)
    assert (result.failure, seen) == ("stopped", [1, 2, 3])
    assert run(setup).error is None


def test_a_job_that_takes_too_long_is_given_up(setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: 10.0 * len(seen)))
    whole = run(setup)
    before = backbone(setup)
    long = TrainJob("j", "trial", "x", LORA, steps=1000, within=25.0)
    result = execute(setup, long, lambda step, loss: seen.append(step), lambda: False)
    assert seen == [1, 2, 3]
    assert result.failure == "failed"
    assert result.error == "It was given up after 25 s; the time of the search (--time) left no more."
    after = backbone(setup)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert run(setup, within=600.0).scores == whole.scores, "the clock of a job is not that of the next"


def test_scoring_takes_too_long_too(setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training has ended by then; ensembles take several forwards for each batch that is scored."""
    now = [0.0]
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def on_step(step: int, loss: float) -> None:
        now[0] += 10.0

    late = TrainJob("j", "trial", "x", LORA, steps=3, within=25.0)
    result = execute(setup, late, on_step, lambda: False)
    assert result.error is not None
    assert "given up after 25 s" in result.error
    assert now == [30.0], "all steps were taken"


def test_non_finite_scores_are_failures_whatever_gave_them(
    setup: WorkerSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = JobResult("j", {"select": 0.5, "test": math.nan})
    monkeypatch.setattr(worker, "runner_of", lambda kind: lambda context, job: given)
    for job in (TrainJob, ScoreJob, UntrainedJob):
        result = execute(setup, job("j", "test", "x", LORA), lambda step, loss: None, lambda: False)
        assert (result.failure, result.scores) == ("non_finite", {})
        assert result.error == "The score is not finite: test=nan."


def test_a_job_that_is_ranked_by_loss_keeps_its_weights_by_it(setup: WorkerSetup) -> None:
    plain = run(setup)
    assert plain.merit is None
    assert plain.rank == plain.score
    by_loss = run(setup, rank_by="loss", keep_above=-math.inf)
    assert by_loss.score == plain.score
    assert by_loss.merit is not None
    assert -2.0 < by_loss.merit < 0
    assert by_loss.rank == by_loss.merit
    assert "weights.safetensors" in by_loss.files
    assert run(setup, rank_by="loss", keep_above=by_loss.merit - 1e-6).files.keys() == by_loss.files.keys()
    assert run(setup, rank_by="loss", keep_above=by_loss.merit).files == {}
    calibrated = run(setup, rank_by="calibrated-loss")
    assert calibrated.merit is not None
    assert by_loss.merit < calibrated.merit < 0, "no temperature was better than the one at hand"


def test_a_job_has_the_backbone_in_its_own_precision(setup: WorkerSetup) -> None:
    half = replace(setup, key=f"{setup.key}-half")
    trial = run(half, precision="bf16", keep_above=-math.inf, splits=("select",))
    assert trial.error is None
    assert "weights.safetensors" in trial.files
    kept = worker._LOADED[half.key]
    assert set(kept.models) == {"bf16"}
    assert next(kept.models["bf16"].base_model.parameters()).dtype == torch.bfloat16
    confirmed = run(half, kind="confirm")
    assert set(kept.models) == {"bf16", "fp32"}
    plain = run(setup)
    assert confirmed.train_loss == plain.train_loss != trial.train_loss
    assert trial.train_loss == pytest.approx(plain.train_loss, abs=0.02)
    again = run(half, kind="test", steps=0, splits=("select",), files=trial.files)
    assert again.error is None


def test_saved_weights_are_scored_in_the_precision_of_their_job(setup: WorkerSetup) -> None:
    half = replace(setup, key=f"{setup.key}-scored")
    told: dict[str, Any] = {"precision": "bf16", "splits": ("select",)}
    trained = run(half, keep_above=-math.inf, **told)
    scored = run(half, kind="test", steps=0, files=trained.files, **told)
    assert scored.error is None
    assert scored.scores == pytest.approx(trained.scores)
    assert set(worker._LOADED[half.key].models) == {"bf16"}, "a second backbone takes memory for nothing"

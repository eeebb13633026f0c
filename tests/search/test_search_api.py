"""A whole search for real: tiny BERT, a CSV file, Ray, and every file it leaves."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.saved_model import save_backbone, write_reviews
from support.searching import Events

from autopeft.assets import load_model
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.hybrid import load
from autopeft.recipe import Recipe
from autopeft.report.search import dry_run_data, dry_run_sheets
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import plan, search
from autopeft.search.core.events import SearchInfo
from autopeft.search.planning import dry_run

SPACE = """
autopeft: 2
name: small
layers:
  - at: all
    attach:
      - lora: {rank: {choice: [0, 1, 2, 4, 8]}}
      - serial_adapter: {bottleneck: {choice: [0, 1, 2, 4]}}
training:
  learning_rate: {float: [1.0e-3, 1.0e-2], log: true}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    model = save_backbone(tmp_path / "model")
    data = write_reviews(tmp_path / "data.csv")
    (tmp_path / "space.yaml").write_text(SPACE)
    return {
        "task": str(data),
        "text": "body",
        "label": "verdict",
        "budget": "5%",
        "space": str(tmp_path / "space.yaml"),
        "model": str(model),
        "trials": 3,
        "steps": 5,
        "confirm": 2,
        "confirm_seeds": 2,
        "workers": 1,
        "max_length": 16,
        "batch_size": 8,
        "pooling": "own",
        "out": str(tmp_path / "run"),
    }


def test_a_search_end_to_end(arguments: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    events = Events()
    result = search(reporter=events, **arguments)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err

    # The outcome
    assert result.confirmed
    assert not result.interrupted
    least, most = next(e[1].limits for e in events.seen if e[0] == "start")
    assert all(least <= t.counts["deployed"] <= most for t in result.trials if t.counts)
    assert sum(t.state == "complete" for t in result.trials) == 3
    assert len(result.select) == len(result.test) == 2
    assert result.test_sd is not None
    assert [b.name.split()[0] for b in result.baselines] == ["LoRA", "head"]
    assert all(len(b.test) == 2 for b in result.baselines)
    # Where a baseline is returned, it has been tested by then.
    tested = 0 if result.number is None else 2
    assert [e[1] for e in events.seen if e[0] == "phase"] == ["search", "confirm", "test"][: 2 + tested // 2]

    # The run folder
    run = load_run(arguments["out"])
    names = {p.name for p in run.path.iterdir()}
    files = {
        "manifest.json",
        "space.yaml",
        "journal.log",
        "trials.jsonl",
        "finals.jsonl",
        "recipe.yaml",
        "result.json",
        "front.csv",
        "front.json",
    }
    assert names == files | {"winner", "logs"}
    assert Recipe.from_file(run.path / "recipe.yaml") == result.winner
    manifest = run.manifest()
    assert manifest["limits"] == {"least": least, "most": most}
    assert manifest["data"]["source"]["sha256"]
    assert manifest["backbone"]["sha256"]
    assert manifest["versions"]["ray"]
    assert len(run.lines("trials.jsonl")) == len(result.trials)
    swept = [job for r in run.lines("finals.jsonl") if "-sweep" in (job := r["job"])]
    assert len(run.lines("finals.jsonl")) - len(swept) == 4 + 2 + 2 + tested
    first = {f"baseline-{b}-sweep{i}" for b, n in enumerate((6, 3)) for i in range(n)}
    assert first <= set(swept)
    assert sum(job.endswith("-again") for job in swept if job.startswith("baseline-0")) >= 3
    assert run.result()["test_mean"] == pytest.approx(result.test_mean)
    assert run.summary()["state"] == "finished"

    # The winner's weights, in a model that knows nothing of the search
    model = load_model(arguments["model"], seed=7)
    with load(model, run.winner) as hybrid, torch.no_grad():
        assert hybrid.recipe == result.winner
        logits = hybrid.model(input_ids=torch.tensor([[1, 2, 3, 4]])).logits
    assert torch.isfinite(logits).all()


def test_a_run_folder_that_vanishes_is_a_clear_error(arguments: dict[str, Any]) -> None:
    class Thief(Events):
        def on_trial_end(self, record: TrialRecord, best: float | None, remaining: float | None) -> None:
            shutil.rmtree(arguments["out"])

    with pytest.raises(AutoPEFTError, match=r"run folder cannot be used|Cannot write"):
        search(reporter=Thief(), **{**arguments, "trials": 50, "workers": 0})


def test_a_dry_run_starts_and_writes_nothing(arguments: dict[str, Any], tmp_path: Path) -> None:
    ray_before = "ray" in sys.modules
    found = plan(**arguments)
    assert not (tmp_path / "run").exists()
    assert ray_before or "ray" not in sys.modules
    assert len(found.samples) == 5
    assert all(s.counts.deployed <= found.prepared.limits[1] for s in found.samples)
    assert found.cardinality == 20
    assert 0 < found.feasible <= 1
    assert found.estimate.seconds > 0
    assert found.estimate.memory > 0


def test_a_dry_run_counts_finalists_and_seeds_in_words(arguments: dict[str, Any]) -> None:
    several = dict(dry_run_sheets(plan(**arguments, samples=0), "20")[0].rows)
    assert re.findall(r"\d+ \w+", several["trials"]) == ["3 trials", "5 steps", "2 finalists", "2 seeds"]
    one = {**arguments, "trials": 1, "steps": 1, "confirm": 1, "confirm_seeds": 1}
    single = dict(dry_run_sheets(plan(**one, samples=0), "20")[0].rows)
    assert re.findall(r"\d+ \w+", single["trials"]) == ["1 trial", "1 step", "1 finalist", "1 seed"]


def test_a_time_budget_bounds_the_foretold_time_but_for_what_is_trained_in_any_case(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "gemm_speed", lambda: 1e7)
    effort = {**arguments, "trials": 1000, "workers": 1, "baselines": "lora"}
    whole = plan(**effort).estimate
    each = whole.trial_seconds
    assert plan(**effort, time=whole.seconds / 2).estimate.seconds == pytest.approx(whole.seconds / 2)
    least = plan(**effort, time=each).estimate.seconds
    assert 4 * each < least < whole.seconds / 2, "two trials, a finalist with two seeds, and LoRA"


def test_a_dry_run_shows_what_the_search_would_begin_with(arguments: dict[str, Any], tmp_path: Path) -> None:
    recipe = {"autopeft": 2, "name": "mine", "layers": [{"at": "all", "attach": [{"lora": {"rank": 2}}]}]}
    (tmp_path / "mine.yaml").write_text(Recipe.from_dict(recipe).to_yaml())
    given = {k: v for k, v in arguments.items() if k != "out"}
    said: list[str] = []
    found = plan(**given, warm_start=[str(tmp_path / "mine.yaml")], notify=said.append)
    assert [[e.method for e in s.recipe.entries()] for s in found.first] == [["lora"]]
    assert found.first[0].counts.deployed <= found.prepared.limits[1]
    titles = [sheet.title for sheet in dry_run_sheets(found, "20")]
    assert "Recipes that it begins with" in titles
    assert len(dry_run_data(found)["first"]) == 1
    with pytest.raises(UsageError, match="nosuch"):
        plan(**given, warm_start=["nosuch"])
    none = plan(**given)
    assert none.first == ()
    assert "Recipes that it begins with" not in [sheet.title for sheet in dry_run_sheets(none, "20")]


def test_a_dry_run_counts_the_runs_of_a_small_budgets_sweep(arguments: dict[str, Any]) -> None:
    """A map of these three layers takes 64 parameters at rank 1: q of all of them fits, q and v do not."""
    given = {**arguments, "budget": "300", "confirm_seeds": 2, "baselines": "lora"}
    found = plan(**given, samples=0)
    (lora,) = dry_run_data(found)["baselines"]
    assert lora["tried"] == [
        "LoRA rank 1 on q, v of the last 2 layers",
        "LoRA rank 2 on q, v of the last layer",
        "LoRA rank 1 on q of all layers",
        "LoRA rank 4 on q of the last layer",
        "LoRA rank 1 on v of all layers",
        "LoRA rank 4 on v of the last layer",
    ]
    assert lora["runs"] == 6 + 2 + 3 + 2, "places, rates beside the best, second seeds, fresh seeds"
    facts = dict(dry_run_sheets(found, "20")[0].rows)
    assert "(13 runs)" in facts["baselines"]


TWO: dict[str, Any] = {"workers": 1, "processes_per_trial": 2}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"budget": "3"}, "3"),
        ({"budget": "lots"}, "lots"),
        ({"effort": "quik"}, "quick"),
        ({"sampler": "gpp"}, "gp"),
        ({"workers": -1}, "workers"),
        ({"workers": 0, "address": "auto"}, "address"),
        ({"workers": 0, "listen": "127.0.0.1"}, "listen"),
        ({"address": "auto", "listen": "127.0.0.1"}, "listen"),
        ({"listen": "everywhere"}, "everywhere"),
        ({"workers": 0, "gpus_per_trial": 0.5}, "gpus_per_trial"),
        ({"cpus_per_trial": 0}, "cpus_per_trial"),
        ({"time": "soon"}, "soon"),
        ({"precision": "fp8"}, "fp8"),
        ({"log": "tensorbord"}, "tensorboard"),
        ({"gpus_per_trial": 1.5}, "gpus_per_trial"),
        ({"processes_per_trial": 0}, "processes_per_trial"),
        ({"space": "defualt"}, "default"),
        ({**TWO, "quantize": "int8"}, "quantize='int8'"),
        ({**TWO, "max_memory": "1GB"}, "1GB"),
        ({**TWO, "goal": "cheapest"}, "objective="),
        ({**TWO, "gpus_per_trial": 1}, "processes_per_trial=2 and gpus_per_trial=1"),
        ({**TWO, "gpus_per_trial": 0.5}, "gpus_per_trial=2"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    arguments: dict[str, Any], tmp_path: Path, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(AutoPEFTError, match=said):
        search(**{**arguments, **wrong})
    assert not (tmp_path / "run").exists()


def test_the_start_event_tells_what_a_display_needs(arguments: dict[str, Any]) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    class Once(Events):
        def on_start(self, info: SearchInfo) -> None:
            super().on_start(info)
            raise Stop

    events = Once()
    with pytest.raises(Stop):
        search(reporter=events, **{**arguments, "workers": 2})
    info = events.seen[0][1]
    assert (info.outline, info.workers) == ("3 trials of 5 steps", 2)
    assert info.jobs == 3 + 2 * 2 + (6 + 3 + 2) + (3 + 2 + 2)
    assert info.estimated_seconds > 0

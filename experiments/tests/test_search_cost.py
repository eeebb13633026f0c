"""The cost of a search: totals, and a whole run on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.language import save_decoder, write_chats
from support.tiny import tiny_config

from autopeft import Recipe, load_task, spec_of
from autopeft.tasks import Rows

FOLDER = "search_cost"
Import = Callable[[str], Any]
Script = Callable[..., str]


def _row(k: int, ours: float, dynamic: float, error: str | None = None) -> dict[str, Any]:
    sides = {
        "ours": {"cpu": ours, "error": error, "outside": 0.1},
        "dynamic": {"cpu": dynamic, "error": None},
    }
    return {"k": k, "sides": sides}


def test_totals_leave_out_what_failed(load: Import) -> None:
    tables = load("tables")
    rows = [
        _row(0, 10.0, 30.0),
        _row(0, 20.0, 40.0),
        _row(3, 2.0, 20.0),
        _row(3, 1.0, 50.0, error="diverged"),
    ]
    found = tables.summarise_all(rows, [8.0])
    total = found["dynamic"]["total"]
    assert (total["recipes"], total["left_out"]) == (3, 1)
    assert total["times"] == pytest.approx(90 / 32)
    assert total["times_with_start"] == pytest.approx(90 / 40)
    assert found["dynamic"]["by_k"][0]["times"] == pytest.approx(70 / 30)
    assert found["dynamic"]["by_k"][3]["times"] == 10.0
    assert found["outside"]["share"]["high"] == pytest.approx(0.05)
    assert "pad" not in found


def test_the_clock_counts_calls_and_lets_go(load: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    home = SimpleNamespace(work=lambda n: sum(range(n)), other=lambda: 1)
    monkeypatch.setitem(sys.modules, "some_home", home)  # type: ignore[arg-type]
    before = home.work
    with load("run").clocked("some_home", "work") as spent:
        assert home.work(1_000_000) == 499_999_500_000
    assert spent["work"] > 0
    assert home.work is before
    with pytest.raises(AttributeError), load("run").clocked("some_home", "renamed"):
        pass


def test_the_clock_finds_what_it_counts(load: Import) -> None:
    run = load("run")
    with run.clocked("autopeft.training.trial", "train", "score_by_rows") as spent:
        pass
    assert spent == {"train": 0.0, "score_by_rows": 0.0}


def test_a_language_model_has_defaults_of_its_own(load: Import) -> None:
    run = load("run")
    plain, own = run.parse([]), run.parse(["--language-model", "--steps", "3"])
    assert (plain.model, plain.recipes, plain.out.name) == ("minilm", 20, "search.json")
    assert (own.model, own.recipes, own.out.name) == ("smollm2-135m", 10, "language_model.json")
    assert own.steps == 3
    spec = spec_of(tiny_config("llama"))
    drawn = run.draw(10, "100%", spec, space=own.space)
    assert all(run.peft_words(d.recipe, spec) is not None for d in drawn)
    assert len({run.lowest_layer(d.recipe, spec) for d in drawn}) > 1


@pytest.mark.parametrize(("task", "metric"), [("gym:chain_sum", "likelihood"), ("movie-sentences", None)])
def test_ours_is_scored_as_in_a_search(load: Import, task: str, metric: str | None) -> None:
    """Answers are not written for the score of a trial."""
    run, asked = load("run"), list[Any]()
    bench = SimpleNamespace(options=run.parse([]), task=load_task(task, made=Rows(20, 10, 10)))
    worker = SimpleNamespace(run=lambda job: asked.append(job) or {})
    run._run(bench, worker, SimpleNamespace(recipe=Recipe.from_dict({"name": "x"})), "ours")
    assert asked[0].metric == metric


@pytest.mark.slow
def test_a_search_on_a_language_model(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out = tmp_path / "search.json"
    model, rows = save_decoder(tmp_path / "llama"), write_chats(tmp_path / "chats.jsonl", 80)
    script(
        "--language-model", "--model", str(model), "--task", str(rows), "--recipes", "2", "--budget", "100%",
        "--steps", "2", "--batch-size", "4", "--rows", "40", "--select", "8", "--max-length", "48",
        "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert found["summary"]["dynamic"]["total"]["recipes"] == 2
    assert found["settings"]["space"] == "search_cost/lora.yaml", "no path of this machine"
    for row in found["recipes"]:
        ours, theirs = row["sides"]["ours"], row["sides"]["dynamic"]
        assert ours["score"] == pytest.approx(theirs["score"], rel=0.2)


@pytest.mark.slow
def test_a_search_goes_on_where_it_was_interrupted(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    options = [
        *tiny, "--recipes", "2", "--budget", "30%", "--steps", "2", "--rows", "64", "--select", "16",
        "--max-length", "24", "--pad", "24", "--pad-recipes", "1", "--out", str(out),
    ]  # fmt: skip
    assert script(*options).count("CPU s  select") == 5
    first = json.loads(out.read_text())
    lines = out.with_suffix(".jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 6  # five trials and one start of our worker
    out.with_suffix(".jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    assert script(*options).count("CPU s  select") == 1
    second = json.loads(out.read_text())
    kept = [row["sides"]["ours"]["cpu"] for row in first["recipes"]]
    assert [row["sides"]["ours"]["cpu"] for row in second["recipes"]][:1] == kept[:1]
    assert second["summary"]["dynamic"]["total"]["recipes"] == 2

"""Whole searches in which hybrids learn nothing, so that a baseline is returned: the head alone, or LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support.saved_model import small_search, write_reviews
from support.searching import Dies

import autopeft
from autopeft.report.html import render_report
from autopeft.report.search import outcome_sheet
from autopeft.runs.folder import load_run
from autopeft.search.api import search

IDLE = """
autopeft: 2
name: idle
layers:
  - attach:
      - lora: {rank: {choice: [1, 2]}}
training: {learning_rate: 1.0e-9}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "idle.yaml").write_text(IDLE)
    told = small_search(
        tmp_path, space=str(tmp_path / "idle.yaml"), trials=2, steps=60, baselines="head", workers=0,
        precision="fp32", confirm_seeds=2, head_start="random", pooling="mean",
    )  # fmt: skip
    write_reviews(tmp_path / "data.csv", rows=600)
    return told


def test_the_head_alone_is_returned_said_first_reported_exported_and_loaded(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    result = search(**arguments)
    assert (result.number, result.origin, result.counts["deployed"]) == (None, "head only", 0)
    assert [entry.method for entry in result.winner.entries()] == ["mean_pooling"]
    assert len(result.test) == 2
    assert result.select_mean > 0.6, "it has learnt, and the hybrids have not"
    assert [c.baseline for c in result.comparisons] == [], "it is not compared with itself"
    assert result.found()[0].startswith("The head alone does as well as any hybrid found")
    run = load_run(result.run)
    assert outcome_sheet(result, {}, "20%").notes[1] == result.finding
    assert result.finding in render_report(run)
    weights = load_file(run.winner / "weights.safetensors")
    assert {name.split(".")[0] for name in weights} == {"head"}

    exported = autopeft.export(result, tmp_path / "exported", format="autopeft")
    assert "The head alone" in (exported.folder / "README.md").read_text()
    texts = ["a fine film", "a bad film", "dull"]
    assert autopeft.predict(exported.folder, texts) == autopeft.predict(result.run, texts)


@pytest.mark.slow
def test_a_search_that_was_killed_returns_it_all_the_same(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        search(**arguments, reporter=Dies(3))
    again = search(resume=arguments["out"])
    whole = search(**{**arguments, "out": str(tmp_path / "whole"), "fresh_baselines": True})
    assert (again.origin, again.winner, again.select, again.test) == (
        "head only", whole.winner, whole.select, whole.test
    )  # fmt: skip
    assert (load_run(arguments["out"]).winner / "weights.safetensors").is_file()


@pytest.mark.slow
def test_weights_are_there_where_runs_are_known_from_an_earlier_search(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    first = search(**arguments)
    again = search(**{**arguments, "out": str(tmp_path / "again")})
    kept, trained = (load_file(r.run / "winner" / "weights.safetensors") for r in (first, again))
    assert any(record.kept for record in load_run(again.run).finals().records)
    assert all((kept[name] == trained[name]).all() for name in kept)


@pytest.mark.slow
def test_the_head_of_a_baseline_that_is_known_from_an_earlier_search_is_counted(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """In the result, in the report and on the card of what is exported."""
    arguments |= {"steps": 12, "baselines": "lora", "head_start": "probe", "pooling": "own"}
    search(**arguments)
    result = search(**{**arguments, "out": str(tmp_path / "again")})
    assert result.number is None, "LoRA is returned"
    run = load_run(result.run)
    assert any(record.kept for record in run.finals().records)
    weights = load_file(run.winner / "weights.safetensors")
    head = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("head."))
    assert head == 2 * 32 + 2
    assert result.counts["head"] == run.result()["counts"]["head"] == head
    assert {baseline.counts["head"] for baseline in result.baselines} == {head}
    assert f'>head</td><td class="right">{head}</td>' in render_report(run)
    exported = autopeft.export(result, tmp_path / "exported", format="autopeft")
    assert f"| head | {head} |" in (exported.folder / "README.md").read_text()

"""A search for the best written answers: they are written to *test* alone, and scores are not mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats

import autopeft
from autopeft.report.html import write_report
from autopeft.runs.folder import load_run
from autopeft.tasks.kinds import get_kind


@pytest.fixture
def search_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return {
        "task": str(write_chats(tmp_path / "chats.jsonl")),
        "model": str(save_decoder(tmp_path / "llama")),
        "metric": "exact_match",
        "budget": "60%",
        "space": "lora",
        "trials": 2,
        "steps": 8,
        "effort": "quick",
        "confirm": 1,
        "confirm_seeds": 1,
        "max_length": 48,
        "batch_size": 8,
        "workers": 0,
        "portfolio": False,
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_answers_are_written_to_test_alone(
    search_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, written = type(get_kind("causal_lm").scorer), []
    generate = cls.generate

    def counted(self: Any, model: Any, split: Any, rows: Any, how: Any, **options: Any) -> list[str]:
        written.extend(rows)
        return generate(self, model, split, rows, how, **options)

    monkeypatch.setattr(cls, "generate", counted)
    found = autopeft.search(**search_options, out=str(tmp_path / "run"))
    trials, finals = (lines(tmp_path / "run" / f"{name}.jsonl") for name in ("trials", "finals"))
    assert {trial["metric"] for trial in trials} == {"likelihood"}
    tests = [r for r in finals if r["kind"] == "test"]
    assert {r["metric"] for r in tests} <= {None}
    assert {r["metric"] for r in finals if r not in tests} == {"likelihood"}
    tested = [r for r in finals if "test" in r["scores"]]
    assert len(written) == 6 * len(tested), "six rows of test each"
    assert finals[0]["label"] == "untuned backbone", "before the first trial"
    assert found.metric == "exact_match"
    assert found.trial_metric == "likelihood"
    assert all(score * 6 == pytest.approx(round(score * 6)) for score in found.test)
    assert not any(score * 6 == pytest.approx(round(score * 6)) for score in found.select)
    assert found.bias is None, "of two metrics"
    assert json.loads((tmp_path / "run/manifest.json").read_text())["trial_metric"] == "likelihood"
    assert found.headline.startswith("exact_match")
    kept = [r["samples"] for r in tests if r["samples"]] or [r["samples"] for r in finals if r["samples"]]
    samples = json.loads((tmp_path / "run/result.json").read_text())["samples"]
    assert len(samples) == 6
    assert samples in kept
    assert {sample["split"] for sample in samples} == {"test"}
    mean = sum(sample["right"] for sample in samples) / 6
    assert mean == pytest.approx(found.test[0]), "six rows of test: all are shown"
    assert [sample.written for sample in found.samples] == [sample["written"] for sample in samples]
    check_what_is_told(found)


def check_what_is_told(found: autopeft.SearchResult) -> None:
    """Each score of *select* stands beside the name of its metric."""
    assert found.headers[-2:] == ("likelihood on select", "test")
    best = next(said for said in found.found() if said.startswith("Best: "))
    assert "parameters, likelihood 0." in best
    page = write_report(load_run(found.run)).read_text()
    assert "likelihood on select</th>" in page
    again = autopeft.evaluate(found.run, split="select")
    assert again.recorded is None, "exact_match of answers was not measured there"


def test_the_plan_says_what_is_scored_by_what(search_options: dict[str, Any]) -> None:
    from autopeft.report.search import dry_run_sheets
    from autopeft.search.api import plan

    sheet = dry_run_sheets(plan(**search_options), "1")[0]
    (said,) = [value for fact, value in sheet.rows if fact == "scored by"]
    assert "likelihood" in said
    assert "on test by exact_match" in said
    plain = dry_run_sheets(plan(**{**search_options, "metric": "likelihood"}), "1")[0]
    assert not [fact for fact, _ in plain.rows if fact == "scored by"]

"""A search for the best written answers: trials write none, finalists do, and scores are not mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.language import save_decoder, write_chats

import autopeft
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
def test_trials_write_nothing(
    search_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, written = type(get_kind("causal_lm")), []
    generate = cls.generate

    def counted(self: Any, model: Any, split: Any, rows: Any, how: Any, **options: Any) -> list[str]:
        written.extend(rows)
        return generate(self, model, split, rows, how, **options)

    monkeypatch.setattr(cls, "generate", counted)
    found = autopeft.search(**search_options, out=str(tmp_path / "run"))
    trials, finals = (lines(tmp_path / "run" / f"{name}.jsonl") for name in ("trials", "finals"))
    assert {trial["metric"] for trial in trials} == {"likelihood"}
    sweeps = [r for r in finals if r["kind"] == "baseline" and "test" not in r["scores"]]
    others = [r for r in finals if r not in sweeps]
    assert {r["metric"] for r in sweeps} == {"likelihood"}
    assert {r["metric"] for r in others} == {None}
    scored = sum(len(r["scores"]) for r in others)
    assert len(written) == 6 * scored, "six rows of select and of test each"
    assert found.metric == "exact_match"
    assert found.trial_metric == "likelihood"
    assert all(score * 6 == pytest.approx(round(score * 6)) for score in (*found.select, *found.test))
    assert json.loads((tmp_path / "run/manifest.json").read_text())["trial_metric"] == "likelihood"
    assert found.headline.startswith("exact_match")
    tested = [r for r in finals if r["kind"] == "test" and r["samples"]]
    kept = [r["samples"] for r in tested] or [r["samples"] for r in finals if r["samples"]]
    samples = json.loads((tmp_path / "run/result.json").read_text())["samples"]
    assert len(samples) == 6
    assert samples in kept
    assert {sample["split"] for sample in samples} == {"test"}
    mean = sum(sample["right"] for sample in samples) / 6
    assert mean == pytest.approx(found.test[0]), "six rows of test: all are shown"
    assert [sample.written for sample in found.samples] == [sample["written"] for sample in samples]


def test_the_plan_says_what_is_scored_by_what(search_options: dict[str, Any]) -> None:
    from autopeft.report.search import dry_run_sheets
    from autopeft.search.api import plan

    sheet = dry_run_sheets(plan(**search_options), "1")[0]
    (said,) = [value for fact, value in sheet.rows if fact == "scored by"]
    assert "scored by likelihood: exact_match" in said
    plain = dry_run_sheets(plan(**{**search_options, "metric": "likelihood"}), "1")[0]
    assert not [fact for fact, _ in plain.rows if fact == "scored by"]

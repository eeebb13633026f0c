"""Trainings on backbones in 8 and 4 bits: what is trained, what is compared, and one training as a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

FOLDER = "quantized"
Import = Callable[[str], Any]


def row(setting: Any, test: float) -> dict[str, Any]:
    return {"setting": asdict(setting), "scores": {"select": test, "test": test}}


def test_what_is_recorded_is_not_trained_again(load: Import) -> None:
    run = load("run")
    settings = run.score_settings()
    assert len({json.dumps(asdict(s)) for s in settings}) == len(settings) == 27
    # As a row is read back.
    known = json.loads(json.dumps([row(s, 0.5) for s in settings[:4]]))
    assert run.needed(settings, known) == settings[4:]
    assert all(not s.shortcuts and not s.scored for s in run.memory_settings())


def test_pairs_of_equal_seeds_are_compared(load: Import) -> None:
    run = load("run")
    scores = {None: (0.80, 0.82), "int8": (0.81, 0.80)}
    own = [s for s in run.score_settings() if s.recipe == "lora" and s.quantize in scores]
    rows = [row(s, scores[s.quantize][s.seed]) for s in own if s.seed < 2]
    rows += [row(s, 0.9) for s in own if s.seed == 2 and s.quantize is None]  # its partner is missing
    found = {(recipe, split): (plain, added) for recipe, split, plain, added in run.differences(rows, "int8")}
    assert set(found) == {("lora", "select"), ("lora", "test")}
    plain, added = found["lora", "test"]
    assert plain == pytest.approx([80, 82])
    assert added == pytest.approx([1, -2])
    assert not list(run.differences(rows, "int4"))


def test_a_training_is_measured(load: Import) -> None:
    run = load("run")
    setting = run.Setting("minilm", "trec", "lora", steps=3, rows=4, max_length=16, scored=False)
    found = run.one(setting)
    assert found["weights"] == pytest.approx(90.9e6, rel=0.01)
    assert found["peak"] > found["before"] > 0
    assert found["step"] > 0
    assert found["scores"] == {}


def test_a_search_is_a_row(load: Import, capsys: pytest.CaptureFixture[str]) -> None:
    run = load("run")
    found = {
        "metric": "exact_match",
        "recipe": {"name": "found"},
        "test": [0.5, 0.6],
        "baselines": [{"name": "LoRA rank 2", "test": [0.4]}, {"name": "untuned backbone", "test": [0.0]}],
        "resources": [
            {"name": "winner", "measured": {"memory": 2e9}},
            {"name": "LoRA rank 2", "measured": {}},
        ],
        "trials": {"complete": 9, "failed": 1},
        "seconds": 540.04,
    }
    row = run.searched("int8", found)
    assert [c["memory"] for c in row["contenders"]] == [2e9, None, None]
    assert (row["trials"], row["seconds"]) == (9, 540.0)
    run.show_searches([row])
    told = capsys.readouterr().out
    assert "50.0 60.0" in told
    assert "2000" in told

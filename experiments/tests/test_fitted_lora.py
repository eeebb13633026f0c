"""LoRAs fitted to hybrids: what is left to train, one training with its exports, and a row of the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

FOLDER = "fitted_lora"
Import = Callable[[str], Any]


def test_what_is_recorded_is_not_trained_again(load: Import) -> None:
    run = load("run")
    settings = run.settings()
    assert len(set(settings)) == len(settings) == len(run.RECIPES) + len(run.DECODER)
    # As a row is read back.
    known = json.loads(json.dumps([{"setting": asdict(s)} for s in settings[:5]]))
    assert run.missing(known) == settings[5:]


@pytest.mark.slow
def test_a_training_and_its_exports(load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load("run")
    monkeypatch.setattr(run, "RUNS", tmp_path)
    serial = replace(run.settings()[0], steps=3, rows=4)
    assert (serial.model, serial.recipe) == ("minilm", "serial adapter")
    row = json.loads(json.dumps(run.measured(serial)))
    assert [fit["asked"] for fit in row["fits"]] == [8, 64, None]
    assert all(fit["maps"] == 6 and not fit["exact"] and fit["cost"]["rows"] > 100 for fit in row["fits"])
    assert row["fits"][0]["rank"] == 8
    assert run.missing([row]) == run.missing([]), "it has other steps than any that is to be trained"


def test_a_row_of_the_table(load: Import) -> None:
    run = load("run")
    cost = {"before": {"loss": 0.5, "score": 0.8}, "after": {"loss": 0.625, "score": 0.75}}
    fits = [
        {"asked": 8, "rank": 8, "cost": cost},
        {"asked": 64, "rank": 12, "cost": None},
        {"asked": None, "rank": 16, "cost": cost},
    ]
    lines = run.tables([{"setting": asdict(run.settings()[0]), "fits": fits}]).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    told = ["0.500", "80.0", "0.625, 75.0", "exact, rank 12", "0.625, 75.0 (rank 16)"]
    assert cells == ["minilm, `trec`", "serial adapter", *told]
    alone = [{"asked": None, "rank": 16, "cost": {**cost, "losses": {"8": 0.75, "16": 0.625}}}]
    last = run.tables([{"setting": asdict(run.settings()[-1]), "fits": alone}]).splitlines()[-1]
    assert last.endswith("| 0.500 | 80.0 | 0.750 |  | 0.625, 75.0 (rank 16) |")
    assert lines[0].count("|") == lines[-1].count("|")

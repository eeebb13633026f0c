"""Searches of language models: each cell once, taken up where it was begun, and a row of the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "language_models"
Import = Callable[[str], Any]


def result(difference: float) -> dict[str, Any]:
    """As a search leaves it, as far as it is kept, and more."""
    compared = {"difference": difference, "low": difference - 0.02, "high": difference + 0.03}
    return {
        "metric": "exact_match",
        "recipe": {"name": "lora+ia3"},
        "counts": {"deployed": 12_345},
        "select": [0.4],
        "test": [0.40, 0.44],
        "comparisons": [
            {"baseline": "LoRA rank 7", **compared},
            {"baseline": "untuned", **compared},
        ],
        "finding": None,
        "interrupted": False,
        "baselines": [
            {"name": "LoRA rank 7", "test": [0.38, 0.42]},
            {"name": "untuned", "test": [0.1]},
        ],
        "trials": {"complete": 8, "failed": 1},
        "seconds": 1_500.0,
        "remarks": [],
        "trial_metric": "likelihood",
        "front": [],
    }


def test_each_cell_is_searched_once_with_a_seed_of_its_own(load: Import) -> None:
    run = load("run")
    cells = run.missing([])
    assert len({(task, budget) for task, budget, _ in cells}) == len({seed for *_, seed in cells}) == 6
    assert run.missing([{"task": cells[0][0], "budget": cells[0][1]}]) == cells[1:]


def test_what_was_begun_goes_on_and_what_ended_is_read(
    load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load("run")
    asked: list[dict[str, Any]] = []

    def search(**options: Any) -> None:
        asked.append(options)
        out = Path(options.get("resume") or options["out"])
        out.mkdir(parents=True, exist_ok=True)
        (out / "manifest.json").write_text("{}")
        if len(asked) == 1:
            raise KeyboardInterrupt
        (out / "result.json").write_text(json.dumps(result(0.02)))

    monkeypatch.setattr(run, "RUNS", tmp_path)
    monkeypatch.setattr("lib.searches.search", search)
    with pytest.raises(KeyboardInterrupt):
        run.searched("gym:chain_sum", "0.3%", 0)
    row = run.searched("gym:chain_sum", "0.3%", 0)
    assert run.searched("gym:chain_sum", "0.3%", 0) == row
    assert (asked[0]["task"], asked[0]["budget"], asked[0]["seed"]) == ("gym:chain_sum", "0.3%", 0)
    assert [set(options) for options in asked[1:]] == [{"resume"}]
    assert "front" not in row


def test_a_row_of_the_table(load: Import) -> None:
    run = load("run")
    lines = run.tables([{"task": "cmudict", "budget": "1%", **result(0.02)}]).splitlines()
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    told = "+2.0 (+0.0 to +5.0)"
    assert cells == [
        "cmudict", "1%", "8", "lora+ia3", "12,345", "42.0 ± 2.8", "40.0 ± 2.8", told, told, "", "25.0",
    ]  # fmt: skip
    assert lines[0].count("|") == lines[-1].count("|")

"""The cost of a search: totals, and a whole run on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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

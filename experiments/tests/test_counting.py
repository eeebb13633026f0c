"""The counting benchmark runs, and its sides agree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "counting" / "run.py"


@pytest.mark.slow
def test_every_side_is_measured_and_agrees(tmp_path: Path) -> None:
    out = tmp_path / "count.json"
    options = ["--backbones", "bert of 24 layers", "--points", "60", "--recipes", "20", "--few", "4"]
    options += ["--repairs", "3", "--repeats", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "On 4 recipes all sides agree." in done.stdout
    result = json.loads(out.read_text())["backbones"]["bert of 24 layers"]
    assert result["agreed"] == 4
    assert result["draw"]["points"] == 60
    assert result["draw"]["different"] + result["draw"]["duplicates"] == 60
    rates = result["rates"]
    assert {"points, cold", "recipes, warm", "graphs", "meta device", "repairs, lora.yaml"} <= set(rates)
    for side in rates.values():
        assert len(side["values"]) == side["per_second"]["count"] == 2
        assert 0 < side["per_second"]["low"] <= side["per_second"]["median"] <= side["per_second"]["high"]
    assert rates["meta device"]["times_meta_device"]["median"] == 1

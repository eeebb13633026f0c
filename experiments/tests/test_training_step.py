"""The cost of a training step: its arithmetic, and a whole run on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FOLDER = "training_step"
Import = Callable[[str], Any]
Script = Callable[..., str]


def test_the_first_steps_are_left_out(load: Import) -> None:
    run = load("run").Run.of(10.0, [11.0, 11.5, 11.75, 11.875], 2, 0.7)
    assert run.ms == [250.0, 125.0]
    assert run.mean == 187.5
    assert run.seconds == 1.875


@pytest.mark.slow
def test_steps_of_every_side(script: Script, tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--steps", "3", "--pad-steps", "2", "--pad", "24", "--repeats", "2", "--batch-size", "8"]
    sides = "ours,dynamic,pad,bare,grouped"
    script(
        *tiny, *options, "--sides", sides, "--ks", "0,2", "--rows", "64", "--max-length", "24",
        "--profile", "--profile-steps", "2", "--out", str(out),
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert [row["k"] for row in found["steps"]] == [0, 2]
    for row in found["steps"]:
        assert list(row["sides"]) == sides.split(",")
        assert all(len(run["ms"]) == 3 for run in row["sides"]["dynamic"]["runs"])
        assert all(len(run["ms"]) == 2 for run in row["sides"]["pad"]["runs"])
    groups = found["profiles"][0]["groups"]
    assert {"autopeft", "torch", "transformers", "torch operators"} <= groups.keys()
    assert sum(groups.values()) == pytest.approx(1.0, abs=0.2)

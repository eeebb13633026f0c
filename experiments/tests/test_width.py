"""Random recipes of two spaces side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lib.settings import FOLDERS, RESULTS

FOLDER = "width"
Import = Callable[[str], Any]


def test_the_best_of_so_many_random_recipes_is_what_drawing_them_gives(load: Import) -> None:
    width, rng = load("run"), np.random.default_rng(0)
    scores = rng.beta(5, 2, 40)
    drawn = rng.choice(scores, (20_000, width.DRAWN)).max(axis=1)
    assert width.best_of(scores) == pytest.approx(drawn.mean(), abs=3e-3)
    assert width.best_of(np.array([0.5])) == 0.5


def test_a_difference_of_spaces_is_the_wider_less_the_narrow_with_its_interval(load: Import) -> None:
    width, rng = load("run"), np.random.default_rng(1)
    narrow, wide = rng.normal(0.70, 0.05, 160), rng.normal(0.75, 0.05, 100)
    before, after, (value, low, high) = width.compare(width.MEASURES["mean score"], (narrow, wide))
    assert value == pytest.approx(after[0] - before[0])
    assert value == pytest.approx(wide.mean() - narrow.mean())
    half = 1.96 * np.sqrt(narrow.var() / 160 + wide.var() / 100)
    assert (low, high) == pytest.approx((value - half, value + half), abs=2e-3)
    assert f"{100 * value:.1f} (" in width.table((narrow, wide)).splitlines()[2]


def test_only_first_trainings_of_random_recipes_count(
    load: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = load("run")
    monkeypatch.setitem(RESULTS, "width", tmp_path)
    rows = [
        {"origin": "random", "seed": 0, "scores": {"40": 0.6, "80": 0.7}},
        {"origin": "random", "seed": 0, "scores": {}, "error": "it broke"},
        {"origin": "random", "seed": 1, "scores": {"80": 0.9}},
        {"origin": "mutant", "seed": 0, "scores": {"80": 0.9}},
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(width.random_scores("width")) == [0.7, 0.0]


def test_the_readme_of_width_has_the_table_of_what_is_recorded(load: Import) -> None:
    width = load("run")
    table = width.table([width.random_scores("samplers"), width.random_scores("width")])
    assert table in (FOLDERS["width"] / "README.md").read_text(encoding="utf-8")

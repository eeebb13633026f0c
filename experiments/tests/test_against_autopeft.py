"""AutoPEFT's own search against ours: codes, tables, and runs whose recipes are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lib.settings import SETTINGS
from lib.storage import Kept

FOLDER = "against_autopeft"
Import = Callable[[str], Any]


def test_a_code_of_the_paper_is_a_member_of_the_space(load: Import, ground: Any, space: Any) -> None:
    against = load("run")
    values = against.values_of((0, 9, 10, 0, 1, 0), ground)
    assert against.code_of(values, ground) == (0, 9, 10, 0, 1, 0)
    assert values == {
        "serial_adapter.bottleneck": "hidden/1",
        "parallel_adapter.bottleneck": 1,
        "prefix_tuning.length": 0,
        "layer_0.on": True,
        "layer_1.on": False,
        "layer_2.on": True,
    }
    space.check(values)


def test_tables_say_when_the_papers_hypervolume_was_reached(load: Import, tmp_path: Path) -> None:
    against = load("run")
    kept = Kept(tmp_path / "x.json", {})

    def course(end: float, every: int) -> dict[str, list[float]]:
        steps = [80.0 * i for i in range(1, 201)]
        rising = [end * min(1.0, s / every) for s in steps]
        return {"steps": steps, "true": rising, "measured": rising}

    for arm, every in (("paper", 16000), ("ours", 3200), ("ours, rungs", 8000), ("random", 32000)):
        for seed in range(3):
            kept.results[f"{arm}/{seed}"] = course(4.0 + 0.01 * seed + 0.02 * (arm != "paper"), every)
    told = against.tables(kept, 80)
    lines = told.splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines[:6]}
    assert "3 of 3, 3 within 25 %" in rows["ours"]
    assert "20%" in rows["ours"]
    assert "3 of 3, 0 within 25 %" in rows["ours, rungs"]
    assert "never" in rows["random"]
    # At a fifth of the steps ours has all of 4.02, 4.03 and 4.04; the paper's end is 4.00 to 4.02.
    assert (
        "After 25 % of the paper's steps ours has 100 % (100 to 101 %; runs of ours: 3, of the paper: 3)"
        in told
    )


def test_the_papers_search_stays_in_its_space(load: Import) -> None:
    pytest.importorskip("botorch")
    pytest.importorskip("numpyro")
    paper = load("paper")
    search = paper.Paper(3, lambda code: (sum(code[:3]) / 3, 0.5), seed=0)
    assert not search.allowed((10, 10, 10, 0, 0, 0))
    assert not search.allowed((0, 1, 2, 1, 1, 1))
    near = search.neighbours((10, 9, 10, 0, 1, 1))
    assert set(near) == {(9, 9, 10, 0, 1, 1), (10, 8, 10, 0, 1, 1), (10, 9, 9, 0, 1, 1),
                         (10, 9, 10, 0, 0, 1), (10, 9, 10, 0, 1, 0)}  # fmt: skip
    assert all(search.allowed(search._draw()) for _ in range(50))
    given = [(0, 1, 2, 0, 0, 0), (3, 4, 5, 0, 0, 0)]
    again = paper.Paper(3, lambda code: (1.0, 0.5), seed=0, first=given)
    assert next(again.run()) == 4
    assert again.codes[:2] == given


class _Counting:
    """A trainer that trains nothing."""

    def __init__(self, setting: Any) -> None:
        self.setting, self.trained = setting, 0

    def train(self, recipe: Any, seed: int) -> dict[str, Any]:
        self.trained += 1
        return {"scores": {} if self.trained == 3 else {"40": 0.1, "80": 0.2}, "cpu_seconds": 1.0}


def test_a_real_run_trains_what_nobody_has_trained(load: Import, tmp_path: Path, rows: Any) -> None:
    confirm, path = load("confirm"), tmp_path / "confirmed.jsonl"
    recipe = rows[0]["recipe"]
    known = [
        {"hash": "a", "seed": 0, "precision": "fp32", "scores": {"40": 0.5, "80": 0.6}},
        {"hash": "b", "seed": 0, "precision": "bf16", "scores": {"40": 0.5, "80": 0.6}},
        {"hash": "c", "seed": 1, "precision": "fp32", "scores": {"40": 0.5, "80": 0.6}},
    ]
    trainer = _Counting(SETTINGS["against_autopeft"])
    real = confirm.Real(path, known, trainer)
    assert real.steps == (40, 80)
    assert real.score(recipe, "a") == {40: 0.5, 80: 0.6}
    assert trainer.trained == 0
    assert [real.score(recipe, key)[80] for key in ("b", "c", "b", "d")] == [0.2, 0.2, 0.2, 0.0]
    assert trainer.trained == 3
    again = confirm.Real(path, known, trainer)
    assert again.measured(recipe, "b", np.random.default_rng(0)) == {40: 0.1, 80: 0.2}
    assert trainer.trained == 3

"""Samplers side by side: the confirmed winner, and the tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lib.replay import Trained
from lib.storage import Kept

FOLDER = "samplers"
Import = Callable[[str], Any]


def test_the_winner_is_the_best_of_three_finalists_in_further_trainings(load: Import) -> None:
    module = load("run")

    class Further:
        steps = (40, 80)

        def measured(self, recipe: Any, key: str, rng: Any) -> dict[int, float]:
            return {40: 1.0, 80: {"a": 0.5, "b": 0.7, "c": 0.6, "d": 0.9}[key]}

    # Recipe a was trained twice, and d is the fourth of them.
    order = [("a", 0.95), ("a", 0.9), ("b", 0.8), ("c", 0.75), ("d", 0.7)]
    ranked = [Trained(80, measured, 0.5, 10, 0.1, key, {}) for key, measured in order]
    assert module.confirmed(ranked, Further(), np.random.default_rng(0)).hash == "b"


def test_the_table_tells_which_samplers_are_worse_than_the_best(load: Import) -> None:
    module = load("run")
    noise = [0.1 * (i % 3) for i in range(30)]

    def course(level: float) -> dict[str, list[float]]:
        return {str(m): [level + n for n in noise] for m in module.MARKS}

    few = {m: [2.25 - v for v in values[:10]] for m, values in course(0.0).items()}
    lines = module._table("regret", {"a": course(2.0), "b": course(3.0), "few": few}, -1.0)
    assert lines[2].count("|  |") == 3
    assert lines[3].count("**1.00 ± 0.00**") == 3
    assert "**" not in lines[4]
    assert lines[4].count("±") == 6


def test_tables_need_every_search_and_the_best_score_is_that_of_the_climb_or_of_one(
    load: Import, tmp_path: Path
) -> None:
    module, kept = load("run"), Kept(tmp_path / "results.json", {})
    kept.results = {"trees/best": 0.7, "trees/tpe/1/3": {"60": {"highest": 0.8}}, "gp/best": 0.9}
    assert module.best_of(kept, "trees") == 0.8
    assert module.best_of(kept, "gp") == 0.9
    lacking = module.missing(kept, ["trees", "gp"])
    searches = 2 * sum(map(len, module.SEEDS.values()))
    assert len(lacking) == 2 * searches - 1
    assert "trees/tpe/1/3" not in lacking
    assert "gp/tpe/1/3" in lacking

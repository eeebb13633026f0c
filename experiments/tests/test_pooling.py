"""What is trained for the question of the reading, and what its tables tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autopeft.recipe.pooling import pooling_of, unpooled

FOLDER = "pooling"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_all_readings_are_trained_alike(run: Any) -> None:
    found = list(run.cells())
    assert len(found) == len(set(found)) == len(run.TASKS) * len(run.ROWS) * 3 * (1 + len(run.RATES)) * 2
    own, by, mean = (run.recipe(run.Training("minilm", "trec", 100, p, 1.5e-3, 0)) for p in run.POOLINGS)
    assert pooling_of(by).methods == pooling_of(mean).methods == ("mean_pooling",)
    assert by != mean
    assert unpooled(mean) == unpooled(by) == own
    assert run.recipe(run.Training("minilm", "trec", 100, "own", run.HEAD, 0)).methods == ()


def rows(run: Any, *, seeds: int = 1, gain: float = 0.05) -> list[dict[str, Any]]:
    """The middle rate has the least loss; the mean has more of the score."""
    found = []
    for seed in range(seeds):
        for pooling in run.POOLINGS:
            for number, rate in enumerate((run.HEAD, *run.RATES)):
                row = {"model": "minilm", "task": "trec", "rows": 100, "pooling": pooling, "rate": rate}
                score = 0.5 + 0.1 * number + gain * run.POOLINGS.index(pooling)
                row |= {"seed": seed, "calibrated": abs(number - 2), "further": score}
                row["probe"] = {"own": 1.5, "mean": 1.0} if pooling == "own" and not number else None
                found.append(row)
    return found


def test_the_rate_is_chosen_by_select_and_told_on_further_rows(run: Any) -> None:
    told = run.tables(rows(run))
    scores = "50.0 → 55.0 → 60.0 | 60.0 → 65.0 → 70.0 | 70.0 → 75.0 → 80.0"
    assert f"| minilm | trec | 100 | 1.50 → 1.00 | {scores} |" in told
    assert "| what the model gives | 100 | 1 | +10.0 | +10.0 | +10.0 | +10.0 |" in told
    assert "| the mean through the pooler | 100 | 1 | +5.0 | +5.0 | +5.0 | +5.0 |" in told


def test_a_seed_that_is_being_recorded_takes_no_part(run: Any) -> None:
    whole = rows(run)
    begun = [{**row, "seed": 1, "further": 0.0} for row in whole[:3]]
    assert run.tables([*whole, *begun]) == run.tables(whole)
    assert "trec" not in run.tables(begun)

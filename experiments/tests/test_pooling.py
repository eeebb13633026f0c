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


def test_both_readings_are_trained_alike(run: Any) -> None:
    found = list(run.cells())
    assert len(found) == len(set(found)) == len(run.TASKS) * len(run.ROWS) * 2 * (1 + len(run.RATES)) * 2
    own, mean = (run.Training("minilm", "trec", 100, pooling, 1.5e-3, 0) for pooling in ("own", "mean"))
    assert pooling_of(run.recipe(mean)).methods == ("mean_pooling",)
    assert unpooled(run.recipe(mean)) == run.recipe(own)
    assert run.recipe(run.Training("minilm", "trec", 100, "own", run.HEAD, 0)).methods == ()


def rows(run: Any, *, seeds: int = 1, gain: float = 0.05) -> list[dict[str, Any]]:
    """The middle rate has the least loss; the mean has more of the score."""
    found = []
    for seed in range(seeds):
        for pooling in ("own", "mean"):
            for number, rate in enumerate((run.HEAD, *run.RATES)):
                row = {"model": "minilm", "task": "trec", "rows": 100, "pooling": pooling, "rate": rate}
                score = 0.5 + 0.1 * number + (gain if pooling == "mean" else 0.0)
                row |= {"seed": seed, "calibrated": abs(number - 2), "further": score}
                row["probe"] = {"own": 1.5, "mean": 1.0} if pooling == "own" and not number else None
                found.append(row)
    return found


def test_the_rate_is_chosen_by_select_and_told_on_further_rows(run: Any) -> None:
    told = run.tables(rows(run))
    assert "| minilm | trec | 100 | 1.50 → 1.00 | 50.0 → 55.0 | 60.0 → 65.0 | 70.0 → 75.0 |" in told
    assert "| 100 | 1 | +5.0 | +5.0 | +5.0 | +5.0 |" in told


def test_a_seed_that_is_being_recorded_takes_no_part(run: Any) -> None:
    whole = rows(run)
    begun = [{**row, "seed": 1, "further": 0.0} for row in whole[:3]]
    assert run.tables([*whole, *begun]) == run.tables(whole)
    assert "trec" not in run.tables(begun)

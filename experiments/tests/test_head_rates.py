"""The recipes differ in one rate alone, and the table tells means and lost seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

FOLDER = "head_rates"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_one_rate_alone_differs(run: Any) -> None:
    for model, part in (("mpnet-base", "hidden"), ("minilm", "")):
        recipes = [run.recipe(model, rate) for rate in run.RATES[model]]
        assert [r.training.settings("head", part=part).learning_rate for r in recipes] == list(
            run.RATES[model]
        )
        assert len({r.structure_hash() for r in recipes}) == 1
    assert {run.recipe("mpnet-base", r).training.settings("head").learning_rate for r in (1e-4, 1e-2)} == {
        run.LAST
    }


def test_the_table_tells_means_and_lost_seeds(run: Any) -> None:
    told = {"model": "mpnet-base", "task": "trec", "rows": 2_000}
    rows = [
        {**told, "rate": rate, "seed": seed, "select": select, "loss": loss}
        for rate, seed, select, loss in (
            (1e-2, 0, 0.88, 0.30), (1e-2, 1, 0.90, 0.40), (3e-4, 0, 0.92, 0.25), (3e-4, 1, 0.20, 1.75),
        )
    ]  # fmt: skip
    line = next(line for line in run.tables(rows).splitlines() if line.startswith("| trec | 2,000"))
    assert line == "| trec | 2,000 | 89.0, loss 0.35 | – | – | 56.0, loss 1.00 (1 of 2 lost) | – |"

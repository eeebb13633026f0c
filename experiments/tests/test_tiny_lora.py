"""What is trained fits the budget, and the table shows the rate that *select* chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autopeft import Recipe
from autopeft.assets import load_config, resolve_model
from autopeft.backbones import spec_of
from autopeft.counting import count

FOLDER = "tiny_lora"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


def test_every_place_is_the_largest_that_fits(run: Any) -> None:
    spec = spec_of(load_config(resolve_model("minilm")))
    for sites, at, rank in run.PLACES.values():
        sizes = []
        for r in (rank, rank + 1):
            told = {"layers": [{"at": at, "attach": [{"lora": {"sites": sites, "rank": r}}]}]}
            sizes.append(count(Recipe.from_dict(told), spec).deployed)
        assert sizes[0] <= run.BUDGET < sizes[1]


def test_the_rate_of_least_loss_on_select_is_shown(run: Any) -> None:
    own = {"task": "trec", "place": "q, upper half", "seed": 0, "select": 0.5}
    rows = [
        own | {"rate": 0.01, "further": 0.8, "loss": 1.0},
        own | {"rate": 0.03, "further": 0.9, "loss": 2.0},
    ]
    assert "| q, upper half | – | 80.0 at 0.01 | – | 80.0 |" in run.tables(rows)

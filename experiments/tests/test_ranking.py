"""What is trained for the question of ranking, and what choosing by a criterion comes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

FOLDER = "ranking"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


@pytest.fixture(scope="module")
def tables(load: Callable[[str], Any]) -> Any:
    return load("tables")


def test_lora_is_tried_at_each_of_its_rates_and_the_one_beyond(run: Any) -> None:
    found = list(run.recipes("0.5%").values())
    rates = sorted({r.training.learning_rate for r in found if r.name == "lora-baseline"})
    assert rates == [0.0005, 0.0015, 0.0045, 0.0135]
    assert len(found) == 8 + len(run.SINGLES)
    assert len({(t.task, t.rows, t.budget, t.hash, t.seed) for t in run.needed()}) == len(list(run.needed()))


def test_criteria_are_those_of_the_rows(tables: Any) -> None:
    labels = np.array([0, 0, 1, 1])
    logits = np.array([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0], [0.0, 4.0]])
    found = tables.criteria(logits, labels)
    assert found["accuracy"] == 0.75
    right, wrong = np.log1p(np.exp(-4)), 4 + np.log1p(np.exp(-4))
    assert found["loss"] == pytest.approx((3 * right + wrong) / 4, abs=1e-6)
    # At the best temperature three rows of four get a probability of 3/4.
    assert found["calibrated_loss"] == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), abs=1e-5)
    assert 0.4 < found["brier"] < 0.6


def row(key: str, seed: int, further: float, **select: float) -> dict[str, Any]:
    told = {"accuracy": 0.5, "loss": 1.0, "calibrated_loss": 1.0, "brier": 1.0} | select
    cell = {"task": "trec", "rows": 100, "budget": "0.5%"}
    return {**cell, "hash": key, "seed": seed, "select": told, "further": {"accuracy": further}}


def test_what_one_seed_chooses_is_judged_by_the_other(tables: Any) -> None:
    rows = [
        row("sure", 0, 0.80, accuracy=0.8, loss=1.5, calibrated_loss=0.5),
        row("sure", 1, 0.78, accuracy=0.8, loss=1.5, calibrated_loss=0.5),
        row("timid", 0, 0.60, accuracy=0.6, loss=0.6, calibrated_loss=0.6),
        row("timid", 1, 0.62, accuracy=0.6, loss=0.6, calibrated_loss=0.6),
    ]
    wanted = {"0.5%": ["sure", "timid"]}
    found = tables.regrets(rows, wanted)
    assert found["calibrated_loss"] == found["accuracy"] == pytest.approx([-1.0, 1.0])
    assert found["loss"] == pytest.approx([-17.0, -19.0])
    assert tables.regrets(rows[:1], wanted)["loss"] == [], "one seed judges nothing"
    assert tables.regrets(rows[:3], wanted)["loss"] == [], "nor does a seed that lacks a recipe"
    older = row("older", 0, 0.99, accuracy=1.0, loss=0.0)
    assert tables.regrets([*rows, older], wanted) == found, "what is not asked any more takes no part"
    assert "| 100 | 0.5% | 1 | +0.00 | -18.00 | +0.00 |" in tables.tables(rows, wanted)

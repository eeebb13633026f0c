"""What is trained for the question of the allocation, and how searches are replayed on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from lib.storage import read_rows

FOLDER = "allocation"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


@pytest.fixture(scope="module")
def replay(load: Callable[[str], Any]) -> Any:
    return load("replay")


def rows(steps: int = 60, noise: float = 0.0) -> list[dict[str, Any]]:
    """A LoRA of 80, five more of the portfolio, and ten draws of 70 to 88; on the way all look alike."""
    draw = random.Random(0)
    means = {
        "lora": 0.80,
        **{f"p{i}": 0.79 for i in range(5)},
        **{f"d{i}": 0.70 + 0.02 * i for i in range(10)},
    }
    found = []
    for key, mean in means.items():
        origin = "drawn" if key[0] == "d" else "lora" if key == "lora" else f"template {key}"
        for seed in range(4):
            score = mean + draw.gauss(0, noise)
            told = {"score": score, "loss": 2 - score, "calibrated": 1 - score}
            early = {"score": 0.5, "loss": 1.0, "calibrated": 1.0}
            found.append(
                {
                    "task": "trec", "hash": key, "steps": steps, "seed": seed, "origin": origin,
                    "select": {"20": early, "40": early, str(steps): told}, "further": mean,
                }
            )  # fmt: skip
    return found


def test_the_population_is_the_portfolio_and_draws_of_the_space(run: Any) -> None:
    found = run.recipes()
    origins = [origin for origin, _ in found.values()]
    slower = [f"{name}, slower" for name in run.LORAS]
    assert origins == [*run.PORTFOLIO, *slower, *["drawn"] * run.DRAWN]
    recorded = {row["hash"] for row in read_rows(run.RESULTS) if row["origin"] == "drawn"}
    assert {key for key, (origin, _) in found.items() if origin == "drawn"} <= recorded, (
        "another space by now"
    )
    first = next(run.needed())
    assert (first.steps, first.seed) == (60, 0)
    assert len(list(run.needed())) == 3 * 3 * 2 * len(found)


def test_what_an_allocation_costs(replay: Any) -> None:
    assert replay.Allocation(12, 60, 2, 3).cost == 12 * 60 + 6 * 60
    assert replay.Allocation(20, 60, 2, 3, rung=20).cost == 20 * 20 + 7 * 40 + 6 * 60
    assert all(450 <= how.cost <= 1_550 for how in replay.ALLOCATIONS)


def test_without_noise_a_search_finds_the_best_that_it_tried(replay: Any) -> None:
    known = replay.Recorded(rows())
    for criterion in replay.CRITERIA:
        whole = replay.Allocation(15, 60, 2, 3)
        assert replay.replay(known, whole, criterion, random.Random(0)).winner == "d9"
    # Of the portfolio alone none is better than LoRA.
    assert replay.replay(known, replay.Allocation(5, 60, 2, 3), "score", random.Random(1)).winner == "lora"


def test_a_rung_that_says_nothing_costs_recipes(replay: Any) -> None:
    known = replay.Recorded(rows())
    blind = replay.Allocation(15, 60, 2, 3, rung=20)
    found = {replay.replay(known, blind, "score", random.Random(i)).winner for i in range(20)}
    assert found != {"d9"}


def test_correlations_are_with_the_end(replay: Any) -> None:
    known = replay.Recorded(rows())
    assert replay.correlations(known, 60, "calibrated")[0] > 0.99
    told = replay.tables(rows(noise=0.01))
    assert "| trec | 60 | 60 | " in told
    assert "| 12 | 60 | none | 2 × 3 † | 1,080 | " in told


def test_a_seed_that_is_being_recorded_takes_no_part(replay: Any) -> None:
    begun = [row for row in rows() if row["seed"] < 3 or row["hash"] == "lora"]
    known = replay.Recorded(begun)
    assert known.seeds == [0, 1, 2]
    assert len(known.rows) == 16


def test_draws_of_an_older_space_decide_no_seeds(replay: Any) -> None:
    older = [{**row, "hash": f"old {i}", "origin": replay.ANY_RATE} for i in range(20) for row in rows()[:1]]
    known = replay.Recorded([*rows(), *older])
    assert known.seeds == [0, 1, 2, 3]
    assert len(known.rows) == 16


def test_more_seeds_than_are_recorded_are_not_replayed(replay: Any) -> None:
    told = replay.tables([row for row in rows(noise=0.01) if row["seed"] < 3])
    assert "| 12 | 60 | none | 2 × 2 † |" in told
    assert "| 12 | 60 | none | 2 × 3 |" not in told


def test_figures_by_seeds_that_chose_are_marked(replay: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "REPLAYS", 3)
    monkeypatch.setattr(replay, "ALLOCATIONS", [replay.Allocation(12, 60, 2, n) for n in (2, 3)])
    groups = {("trec", 60): replay.Recorded(rows())}
    cells = [line.split(" | ")[3] for line in list(replay._searches(groups))[2:]]
    assert cells == ["2 × 2", "2 × 3 †"]


def test_a_recipe_without_all_seeds_takes_no_part(replay: Any) -> None:
    known = replay.Recorded(rows()[:-1])
    assert "d9" not in known.rows
    assert known.loras == ["lora"]


def test_what_is_told_is_of_seeds_that_chose_nothing(replay: Any) -> None:
    known = replay.Recorded(rows())
    out = replay.replay(known, replay.Allocation(12, 60, 2, 2), "loss", random.Random(0))
    assert len(out.seeds) == 1
    told = {seed: {**row, "further": 0.1 * seed} for seed, row in known.rows[out.winner].items()}
    known.rows[out.winner] = told
    assert known.further(out.winner, out.seeds) == pytest.approx(10 * out.seeds[0])
    assert known.further(out.winner) == pytest.approx(15.0)


def test_a_lora_is_tuned_by_the_criterion(replay: Any) -> None:
    found = rows()
    better = []
    for row in found:
        if row["hash"] == "lora":
            select = {step: {**told, "loss": told["loss"] - 1} for step, told in row["select"].items()}
            better.append({**row, "hash": "slow", "origin": "lora, slower", "select": select})
    known = replay.Recorded([*found, *better])
    how = replay.Allocation(5, 60, 2, 3)
    assert replay.replay(known, how, "loss", random.Random(1)).lora == "slow"
    assert replay.replay(known, how, "score", random.Random(1)).lora == "lora"

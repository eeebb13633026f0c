"""What searches for the cheapest are scored on, and what the table tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autopeft import load_task

FOLDER = "cheapest"


@pytest.fixture(scope="module")
def run(load: Callable[[str], Any]) -> Any:
    return load("run")


@pytest.mark.parametrize("most", [900, 2_500])
def test_what_a_search_did_not_see_joins_its_test_rows(run: Any, most: int) -> None:
    task = load_task("trec", seed=7).cut(2_000, 400, 1_000, seed=7)
    wide = run.with_unseen_rows(task, 7, most)
    own, rows = task.splits["test"].texts, wide.splits["test"].texts
    assert rows[: len(own)] == own
    assert len(rows) == most
    assert not {*rows} & {*task.splits["train"].texts, *task.splits["select"].texts}
    assert {*rows[len(own) :]} <= {*load_task("trec", seed=7).splits["train"].texts}
    assert (wide.splits["train"], wide.splits["select"]) == (task.splits["train"], task.splits["select"])


def test_a_recipe_that_is_compared_twice_is_trained_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ready:
        class effort:  # noqa: N801
            steps = 60

    class Result:
        def __init__(self, seed: int) -> None:
            self.scores = {"test": float(seed)}

    asked: list[Any] = []

    def trained(setup: Any, *jobs: Any) -> list[Result]:
        asked.extend(jobs)
        return [Result(job.seed) for job in jobs]

    monkeypatch.setattr(run, "worker_setup", lambda ready: None)
    monkeypatch.setattr(run, "run_here", trained)
    found = run._scores(Ready(), {"test": {"a": 1}, "tuned": {"a": 1}, "plain": {"a": 2}}, 320)
    assert len(asked) == 2 * run.FRESH
    assert len({job.id for job in asked}) == len(asked)
    assert found["test"] == found["tuned"] == found["plain"]
    assert {job.splits for job in asked} == {("test",)}


def test_the_table_tells_cost_and_bound(run: Any) -> None:
    rows = [
        {
            "task": "trec", "seed": seed, "winner": "w", "lora_returned": seed == 1, "cost": cost,
            "test": [score, score], "tuned": [0.90, 0.90], "plain": [0.88, 0.88],
        }
        for seed, cost, score in ((0, 0.5, 0.90), (1, 0.7, 0.89))
    ]  # fmt: skip
    lines = list(run.tables(rows))
    assert lines[2] == "| trec | 0 | w | 0.50 | 90.0 | +0.0 | +2.0 |"
    assert "LoRA is returned" in lines[3]
    assert len(lines) == 5, "all seeds chose"
    # Student's t of one degree of freedom at 95 %: 6.31 standard errors of 0.5 points.
    assert "at most 0.6 of the cost in 1 of 2 searches; less tuned LoRA -0.50, lower bound -3.66" in lines[4]


def test_seeds_that_chose_nothing_are_told_apart(run: Any) -> None:
    rows = [
        {
            "task": "trec", "seed": seed, "winner": "w", "lora_returned": False, "cost": 0.5,
            "test": [0.95, 0.95, 0.95, 0.90, 0.90], "tuned": [0.91] * 5, "plain": [0.89] * 5,
        }
        for seed in (0, 1)
    ]  # fmt: skip
    all_seeds, others = list(run.tables(rows))[4:]
    assert "less tuned LoRA +2.00, lower bound +2.00; less LoRA as users take it +4.00" in all_seeds
    assert others == (
        "With the 2 seeds that chose nothing: less tuned LoRA -1.00, lower bound -1.00; less LoRA as users "
        "take it +1.00, lower bound +1.00."
    )

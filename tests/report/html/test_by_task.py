"""What the page of a search over several tasks says of each of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autopeft.report.html.by_task import task_sections, tasks_overview
from autopeft.runs.documents import read_result
from autopeft.runs.records import TrialRecord

SHARED, OWN = "LoRA of all layers", "LoRA of all layers" + ", all of them" * 12 + " for each task"
TEST = {
    "finalist 0": ({"a": 0.70, "b": 0.10}, {"a": 0.74, "b": 0.10}),
    SHARED: ({"a": 0.60, "b": 0.20}, {"a": 0.60, "b": 0.30}),
    OWN: ({"a": 0.50, "b": 0.40}, {"a": 0.54, "b": 0.40}),
}


def record(kind: Any, label: str, seed: int, **by_task: Any) -> TrialRecord:
    return TrialRecord(kind, label, "complete", {}, seed=seed, by_task=by_task)


def run(origin: str) -> Any:
    finals = []
    for name, scores in TEST.items():
        if name != origin and origin in TEST and name == "finalist 0":
            continue  # where a baseline is returned, no finalist sees the test rows
        for seed, test in zip((7, 8), scores, strict=True):
            found = {"select": {"a": 0.5, "b": 0.5}}
            if name.startswith("finalist"):
                finals += [record("confirm", f"{name}, seed {seed}", seed, **found)]
                finals += [record("test", f"test of {name}, seed {seed}", seed, test=test)]
            else:
                finals += [record("baseline", f"{name}, seed {seed}", seed, **found, test=test)]
    finals += [record("baseline", f"{SHARED}, learning rate 0.1", 0, select={"a": 1.0, "b": 1.0})]
    return SimpleNamespace(
        finals=finals,
        result=read_result(
            {
                "origin": origin,
                "counts": {"deployed": 10},
                "further_task": 0,
                "baselines": [
                    {"name": SHARED, "counts": {"deployed": 20}, "further_task": 0},
                    {"name": OWN, "counts": {"deployed": 40}, "further_task": 20},
                ],
            }
        ),
    )


def test_seeds_are_of_one_hybrid_and_the_winner_comes_first() -> None:
    overview = tasks_overview(run("trial 3"))
    assert overview is not None
    assert overview.headers == ("hybrid", "a", "b", "deployed", "each further task")
    assert [row[-2:] for row in overview.rows] == [("10", "0"), ("20", "0"), ("40", "20")]
    assert [row[0] for row in overview.rows[:2]] == ["winner", SHARED]
    assert overview.rows[2][0].startswith(f"{SHARED}, all of them")
    assert overview.rows[0][1].startswith("0.7200 ± ")
    sections = dict(task_sections(run("trial 3")))
    assert list(sections) == ["a", "b"]
    gains = [row[-1] for row in sections["a"].rows]
    # 10 and 14 points: 12 ± 12.706 · 2.828 / √2
    assert gains == ["–", "+12.0 ± 25.4", "+20.0 ± 0.0"]
    assert sections["b"].rows[2][-1] == "-30.0 ± 0.0"


def test_a_baseline_that_is_returned_stands_once() -> None:
    overview = tasks_overview(run(SHARED))
    assert overview is not None
    assert [(row[0], row[-1]) for row in overview.rows] == [("winner", "0"), (overview.rows[1][0], "20")]
    assert dict(task_sections(run(SHARED)))["a"].rows[1][-1] == "+8.0 ± 25.4"


@pytest.mark.parametrize("finals", [[], [record("confirm", "finalist 0, seed 7", 7)]])
def test_one_task_has_no_section(finals: list[TrialRecord]) -> None:
    alone = SimpleNamespace(finals=finals, result=None)
    found: Any = alone
    assert tasks_overview(found) is None
    assert task_sections(found) == []

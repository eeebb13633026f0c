"""Whole searches for the smallest and the cheapest recipe, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from support.saved_model import small_search
from support.searching import Dies

from autopeft.errors import UsageError
from autopeft.export.package import find_saved, write_package
from autopeft.recipe import Recipe
from autopeft.report.html import render_report
from autopeft.runs.folder import load_run
from autopeft.runs.records import TrialRecord
from autopeft.search.api import plan, search
from autopeft.search.planning.prepare import Prepared
from autopeft.search.space.candidate import keeps_within

SPACE = """
autopeft: 2
name: places
vars: {first_layer: {int: [0, last]}}
layers:
  - at: {from: $first_layer}
    attach:
      - lora: {rank: {choice: [0, 1, 2, 4, 8]}}
training:
  learning_rate: {float: [3.0e-3, 3.0e-2], log: true}
  groups: {head: {learning_rate: 1.0e-2}}
"""


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "places.yaml").write_text(SPACE)
    return small_search(
        tmp_path, trials=6, steps=12, baselines="lora,head", space=str(tmp_path / "places.yaml"), workers=0,
        confirm_seeds=2, confirm=2, precision="fp32",
    )  # fmt: skip


@pytest.mark.slow
def test_the_cheapest_is_looked_for_on_the_upper_layers(arguments: dict[str, Any], tmp_path: Path) -> None:
    result = search(**arguments, goal="cheapest")
    run = load_run(arguments["out"])
    told = run.manifest()
    assert (told["goal"], told["objective"], told["sampler"]) == ("cheapest", "score,cost", "linear")
    first, *others = run.trials().records
    assert first.recipe["layers"][0]["at"] == [2], "the last half of three layers"
    assert first.step_cost is not None
    assert all(r.step_cost is not None for r in others)
    lowest = {r.number: min(_layers(r)) for r in (first, *others) if r.state == "complete"}
    costs = {r.number: r.step_cost or 0.0 for r in (first, *others)}
    assert len(set(lowest.values())) > 1
    upper, all_of_them = (median(costs[n] for n, low in lowest.items() if low == k) for k in (2, 0))
    assert upper < all_of_them, "what leaves layers alone costs less"
    assert set(result.answers) == {"best", "smallest", "cheapest"}
    assert result.finding
    _is_told(result, run, tmp_path)


def _layers(record: TrialRecord) -> list[int]:
    at = record.recipe["layers"][0]["at"]
    return [0, 1, 2] if at == "all" else list(at)


def _is_told(result: Any, run: Any, folder: Path) -> None:
    """In the run folder, in the report and on the card."""
    kept = run.result()
    assert (kept["goal"], kept["finding"], kept["origin"]) == (result.goal, result.finding, result.origin)
    texts = [answer["text"] for answer in kept["answers"].values() if answer]
    assert texts
    page = render_report(run)
    assert all(sentence.replace("'", "&#39;") in page for sentence in (result.finding, *texts))
    card = (write_package(find_saved(run.path), folder / "exported") / "README.md").read_text()
    assert result.finding.split(" (")[0] in card
    assert "Seeds: 1000, 1001." in card


@pytest.mark.slow
def test_the_smallest_takes_no_measurement(arguments: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    result = search(**arguments, goal="smallest", notify=said.append)
    run = load_run(arguments["out"])
    assert (run.manifest()["objective"], result.goal) == ("score,params", "smallest")
    assert not any("Measuring" in line for line in said)
    assert all(r.step_cost is None for r in run.trials().records)
    _is_told(result, run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("after", [3, 18])
def test_a_search_that_was_killed_goes_on_to_the_same_end(
    arguments: dict[str, Any], tmp_path: Path, after: int
) -> None:
    whole = search(**{**arguments, "out": str(tmp_path / "whole"), "goal": "cheapest"})
    with pytest.raises(RuntimeError, match="killed"):
        search(**{**arguments, "goal": "cheapest", "fresh_baselines": True}, reporter=Dies(after))
    again = search(resume=arguments["out"])
    assert [(t.recipe, t.score, t.step_cost) for t in again.trials] == [
        (t.recipe, t.score, t.step_cost) for t in whole.trials
    ]
    assert (again.winner, again.select, again.test) == (whole.winner, whole.select, whole.test)
    assert (again.goal, again.origin) == ("cheapest", whole.origin)
    assert (load_run(arguments["out"]).winner / "weights.safetensors").is_file()


def test_what_is_returned_keeps_budget_and_limits(arguments: dict[str, Any]) -> None:
    free = plan(**arguments, samples=0).prepared
    ready = plan(**arguments, max_file="3kB", samples=0).prepared
    largest, smaller, head = (b.candidates[0] for b in (free.baselines()[0], *ready.baselines()))
    ranged = plan(**{**arguments, "budget": "1%..20%"}, samples=0).prepared

    def inside(prepared: Prepared, *recipes: Any) -> list[bool]:
        found = (Recipe.from_dict(dict(recipe)) for recipe in recipes)
        return [keeps_within(recipe, prepared.budget, prepared.spec) for recipe in found]

    assert inside(free, largest, smaller, head) == [True, True, True]
    assert inside(ready, largest, smaller, head) == [False, True, True]
    assert inside(ranged, largest, head) == [True, False]


def test_a_goal_and_an_objective_that_lead_apart_are_refused(arguments: dict[str, Any]) -> None:
    for goal, objective in (("smallest", "score"), ("cheapest", "score,params")):
        with pytest.raises(UsageError, match=rf"The goal '{goal}' has the objective .*leave one of them out"):
            plan(**arguments, goal=goal, objective=objective, samples=0)
    with pytest.raises(UsageError, match="goal"):
        plan(**arguments, goal="quickest")


def test_a_goal_beside_the_best_has_more_finalists(arguments: dict[str, Any]) -> None:
    del arguments["confirm"]
    tops = [plan(**arguments, goal=goal, samples=0).prepared.effort.top for goal in ("best", "smallest")]
    assert tops == [1, 4]
    normal = plan(**arguments, goal="smallest", effort="normal", samples=0).prepared.effort
    assert normal.top == 5
    assert plan(**arguments, goal="smallest", confirm=1, samples=0).prepared.effort.top == 1


def test_a_goal_beside_the_best_is_judged_on_more_rows(arguments: dict[str, Any]) -> None:
    for goal, rows in (("best", 400), ("smallest", 1_000), ("cheapest", 1_000)):
        assert plan(**arguments, goal=goal, samples=0).prepared.effort.select_rows == rows
    asked = plan(**arguments, goal="cheapest", select_rows=7, samples=0).prepared
    assert (asked.effort.select_rows, len(asked.task.splits["select"])) == (7, 7)


def test_the_best_may_be_looked_for_with_another_objective(arguments: dict[str, Any]) -> None:
    ready = plan(**arguments, objective="score,params", samples=0).prepared
    assert (ready.goal, ready.objective, ready.cost, ready.step_cost) == (
        "best",
        "score,params",
        "deployed",
        None,
    )
    assert json.loads(json.dumps(ready.manifest()["arguments"]))["goal"] == "best"

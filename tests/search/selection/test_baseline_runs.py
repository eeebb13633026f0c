from __future__ import annotations

from typing import Any

from autopeft.recipe import Recipe
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds


def test_candidates_that_are_runs_of_their_own_have_no_sweep_and_a_seed_each() -> None:
    recipes = tuple({"name": f"r{i}"} for i in range(3))
    race = BaselineRuns(0, Baseline("random hybrids", recipes, {"deployed": 7}, kind="random", each=True))
    assert race.sweep_jobs(5, 10) == []
    assert race.swept
    assert race.later(3) == 3
    jobs = race.jobs(fresh_seeds(5, 2), 10)
    assert [(j.recipe["name"], j.seed) for j in jobs] == [("r0", 1005), ("r1", 1006), ("r2", 1007)]
    assert len({j.id for j in jobs}) == 3
    for i, job in enumerate(jobs):
        race.take(JobResult(job.id, {"select": 0.5, "test": i / 10}, counts={"deployed": i}))
    contender = race.contender()
    assert contender.counts == {"deployed": 7}
    assert contender.recipe == {}
    assert contender.by_seed == {1005: 0.0, 1006: 0.1, 1007: 0.2}
    assert race.later(3) == 0


def test_a_baseline_is_called_after_what_select_chose() -> None:
    lora = Recipe.from_dict({"layers": [{"attach": ["lora"]}]}).to_dict()
    tables: Any = ({"deployed": 1}, {"deployed": 2})
    race = BaselineRuns(
        0, Baseline("single", (lora, lora), {"deployed": 1}, titles=("one", "two"), tables=tables)
    )
    assert not race.swept
    first, second = race.sweep_jobs(5, 10)
    race.take_sweep(JobResult(first.id, {"select": 0.4}))
    assert not race.swept
    race.take_sweep(JobResult(second.id, {"select": 0.6}))
    assert race.swept
    assert [j.seed for j in race.jobs(fresh_seeds(5, 2), 10)] == [1005, 1006]
    assert (race.contender().name, race.contender().counts) == ("two", {"deployed": 2})


def test_a_baseline_without_a_choice_is_not_swept() -> None:
    race = BaselineRuns(0, Baseline("one", ({"name": "x"},), {"deployed": 1}))
    assert race.sweep_jobs(5, 10) == []
    assert [j.recipe for j in race.jobs(fresh_seeds(5, 2), 10)] == [{"name": "x"}] * 2


def test_of_candidates_that_score_the_same_the_first_is_chosen() -> None:
    recipes = tuple({"name": f"r{i}"} for i in range(3))
    lora = tuple(Recipe.from_dict(r).to_dict() for r in recipes)
    race = BaselineRuns(0, Baseline("b", lora, {"deployed": 1}, titles=("a", "b", "c")))
    for job, score in zip(race.sweep_jobs(0, 10), (0.5, 0.75, 0.75), strict=True):
        race.take_sweep(JobResult(job.id, {"select": score}))
    race.jobs(fresh_seeds(0, 1), 10)
    assert race.name == "b"


def test_a_sweep_that_failed_throughout_trains_nothing() -> None:
    recipes = tuple(Recipe.from_dict({"name": f"r{i}"}).to_dict() for i in range(2))
    race = BaselineRuns(0, Baseline("b", recipes, {"deployed": 1}))
    for job in race.sweep_jobs(0, 10):
        race.take_sweep(JobResult(job.id, error="boom", failure="failed"))
    assert race.swept
    assert race.jobs(fresh_seeds(0, 2), 10) == []

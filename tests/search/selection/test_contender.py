from __future__ import annotations

import statistics
from typing import Any

import pytest

from autopeft.recipe import Recipe
from autopeft.runs.records import TrialRecord
from autopeft.search.core.jobs import JobResult
from autopeft.search.selection.baseline_runs import BaselineRuns
from autopeft.search.selection.baselines import Baseline
from autopeft.search.selection.contender import fresh_seeds, mean_sd
from autopeft.search.selection.finalists import choose_finalists


def test_mean_and_sample_deviation() -> None:
    values = [0.8, 0.82, 0.79]
    mean, sd = mean_sd(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert sd == pytest.approx(statistics.stdev(values))
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([]) == (None, None)


def test_finalists_are_different_recipes() -> None:
    records = [TrialRecord("trial", "t", "complete", {}, number=i, hash=h) for i, h in enumerate("aabc")]
    assert [r.number for r in choose_finalists(records, 2)] == [0, 2]


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

from __future__ import annotations

import statistics

import pytest

from autopeft.search.core.jobs import JobResult, TrainJob
from autopeft.search.selection.contender import RepeatedRuns, fresh_seeds, mean_sd


def test_mean_and_sample_deviation() -> None:
    values = [0.8, 0.82, 0.79]
    mean, sd = mean_sd(values)
    assert mean == pytest.approx(statistics.mean(values))
    assert sd == pytest.approx(statistics.stdev(values))
    assert mean_sd([0.5]) == (0.5, None)
    assert mean_sd([]) == (None, None)


def test_fresh_seeds_are_never_the_searchs_own() -> None:
    assert fresh_seeds(5, 3) == [1005, 1006, 1007]
    assert 0 not in fresh_seeds(0, 100)


def test_counts_are_those_of_the_best_run_whatever_comes_last() -> None:
    """Of what prunes itself each seed leaves another size, and the best run's weights are kept."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        runs = RepeatedRuns("mine", "confirm")
        runs.recipe, runs.counts = {"name": "r"}, {"deployed": 99}
        jobs = runs.final_jobs("confirm-7", [1000, 1001, 1002], 60, ("select",), keep=True)
        for i in order:
            score, size = ((0.5, 10), (0.75, 20), (0.25, 30))[i]
            runs.take(JobResult(jobs[i].id, {"select": score}, counts={"deployed": size}))
        assert runs.contender().counts == {"deployed": 20}


def test_runs_of_a_recipe_with_fresh_seeds() -> None:
    runs = RepeatedRuns("mine", "confirm")
    runs.recipe, runs.number = {"name": "r"}, 7
    jobs = runs.final_jobs("confirm-7", [1000, 1001, 1002], 60, ("select",), keep=True)
    assert [(j.id, j.seed, j.steps) for j in jobs] == [
        ("confirm-7-s1000", 1000, 60),
        ("confirm-7-s1001", 1001, 60),
        ("confirm-7-s1002", 1002, 60),
    ]
    assert all(isinstance(j, TrainJob) and j.keep_above == float("-inf") for j in jobs)
    assert not runs.complete
    runs.take(JobResult(jobs[0].id, {"select": 0.5}, counts={"deployed": 3}))
    runs.take(JobResult(jobs[1].id, {"select": 0.75, "test": 0.625}))
    assert not runs.complete
    runs.take(JobResult(jobs[2].id, error="boom", failure="failed"))
    assert runs.complete
    assert [r.seed for r in runs.good] == [1001, 1000], "the best comes first"
    contender = runs.contender()
    assert (contender.select, contender.test, contender.errors) == ((0.5, 0.75), (0.625,), ("boom",))
    assert contender.by_seed == {1000: None, 1001: 0.625, 1002: None}
    assert (contender.counts, contender.number) == ({"deployed": 3}, 7)
    assert (contender.select_mean, contender.test_sd) == (0.625, None)

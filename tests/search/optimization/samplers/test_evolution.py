from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, create_trial
from support.landscape import view

from autopeft.search.optimization.hypervolume import hypervolume
from autopeft.search.optimization.samplers.evolution import EvolutionSampler, ranking
from autopeft.search.optimization.samplers.observations import Point
from autopeft.search.space.parameters import Parameter

SPACE = {f"x{i}": IntDistribution(0, 9) for i in range(8)}


def trial(level: int, score: float) -> FrozenTrial:
    return create_trial(value=score, params=dict.fromkeys(SPACE, level), distributions=SPACE)


def parent_of(params: dict[str, Any]) -> int:
    """Most parameters of a mutant are its parent's."""
    return max(set(params.values()), key=list(params.values()).count)


def parents(trials: list[FrozenTrial], population: int, count: int = 40) -> list[int]:
    sampler = EvolutionSampler(seed=0, startup=1, population=population)
    return [parent_of(view(trials, sampler).ask(dict(SPACE)).params) for _ in range(count)]


def test_age_removes_even_the_best() -> None:
    trials = [trial(9, 1.0), *(trial(i, i / 100) for i in range(6))]
    assert 9 in parents(trials, 7)
    assert 9 not in parents(trials, 6)


def test_winners_of_tournaments_are_good_and_not_always_the_best() -> None:
    found = parents([trial(i, i / 10) for i in range(10)], 10, 200)
    # The best takes part in half of the tournaments; the winner of five is never among the worst four.
    assert 0.35 < np.mean([p == 9 for p in found]) < 0.65
    assert min(found) >= 4


def test_children_are_new_even_where_everything_near_is_known() -> None:
    space = {"x": IntDistribution(0, 5)}
    known = [create_trial(value=x / 10, params={"x": x}, distributions=space) for x in (0, 1, 3, 4, 5)]
    sampler = EvolutionSampler(seed=0, startup=1, population=9)
    assert view(known, sampler).ask(dict(space)).params == {"x": 2}


def test_two_objectives_mutate_the_recipe_after_repair() -> None:
    parameters = [Parameter(f"x{i}", "int", low=0, high=99) for i in range(8)]
    space = {p.name: IntDistribution(0, 99) for p in parameters}

    def repair(params: dict[str, Any]) -> Point:
        values = {k: min(v, 60) for k, v in params.items()}
        return Point(values, sum(values.values()), str(values))

    raw = dict.fromkeys(space, 90)
    for objectives, expected in ((1, 90), (2, 60)):
        done = create_trial(values=[0.5, 40.0][:objectives], params=raw, distributions=space)
        sampler = EvolutionSampler(
            seed=0,
            startup=1,
            population=6,
            repair=repair,
            parameters=parameters,
            objectives=objectives,
        )
        # Every mutant of the raw point is repaired to the known recipe unless it falls below 60.
        child = view([done], sampler, objectives).ask(dict(space)).params
        assert parent_of(child) == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_ranking_puts_what_is_dominated_behind_what_dominates(points: list[tuple[int, int]]) -> None:
    place = ranking(points)
    assert sorted(place) == list(range(len(points)))
    for p, i in zip(points, place, strict=True):
        for q, j in zip(points, place, strict=True):
            if p != q and p[0] >= q[0] and p[1] <= q[1]:
                assert i < j


def test_ranking_within_a_front_goes_by_hypervolume() -> None:
    front = [(1.0, 1.0), (5.0, 4.0), (5.1, 5.0), (9.0, 9.0)]
    points = [*front, (0.0, 10.0)]
    whole = hypervolume(front, (0.0, 10.0))
    loss = [whole - hypervolume([q for q in front if q != p], (0.0, 10.0)) for p in front]
    assert ranking(points)[:4] == np.argsort(np.argsort([-x for x in loss])).tolist()


def test_ranking_by_score_prefers_the_later_of_equals() -> None:
    assert ranking([(0.5,), (0.9,), (0.5,)]) == [2, 0, 1]
    assert ranking([]) == []


@pytest.mark.parametrize("objectives", [1, 2])
def test_equal_points_all_have_a_place(objectives: int) -> None:
    assert sorted(ranking([(0.5, 1.0)[:objectives]] * 5)) == list(range(5))

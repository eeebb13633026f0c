from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from support.landscape import Landscape, Run, bound_space, trial_of, view

from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.samplers import Point, make_sampler
from autopeft.search.optimization.samplers.linear import LinearSampler, draw
from autopeft.search.space.parameters import Parameter

SWITCHES = [Parameter(f"layer_{i}.on", "categorical", (True, False)) for i in range(10)]
CODEC = Codec(SWITCHES)
WORTH = np.array([3, -3, 2, -2, 2, -2, 1, -1, 1, -1]) / 100


def repaired(params: dict[str, Any]) -> Point:
    return Point(params, 1 + sum(params.values()), str(sorted(params.items())))


def truth(params: dict[str, Any]) -> float:
    return float(WORTH @ [params[p.name] for p in SWITCHES])


def trial(params: dict[str, Any], score: float, rung: int = 100, objectives: int = 1) -> FrozenTrial:
    point = repaired(params)
    return create_trial(
        values=[score, float(point.cost)][:objectives],
        params=params,
        distributions=CODEC.distributions,
        user_attrs={
            "point": params,
            "cost": point.cost,
            "hash": point.hash,
            "score": score,
            "rung": rung,
            "full": rung == 100,
        },
    )


def points(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [draw(CODEC.distributions, rng) for _ in range(count)]


def sampler(seed: int = 0, objectives: int = 1) -> LinearSampler:
    return LinearSampler(seed=seed, startup=2, repair=repaired, parameters=SWITCHES, objectives=objectives)


def suggested(trials: list[FrozenTrial], count: int = 5, objectives: int = 1) -> list[dict[str, Any]]:
    found = []
    for seed in range(count):
        study = view(trials, sampler(seed, objectives), objectives)
        found.append(study.ask(dict(CODEC.distributions)).params)
    return found


BEST = {p.name: bool(w > 0) for p, w in zip(SWITCHES, WORTH, strict=True)}


def test_with_enough_data_it_goes_to_the_best_recipe() -> None:
    trials = [trial(p, truth(p)) for p in points(40) if p != BEST]
    assert suggested(trials) == [BEST] * 5


def test_it_explores_what_the_data_leave_open() -> None:
    known = [{p.name: i % 2 == 0 and j > 4 for j, p in enumerate(SWITCHES)} for i in range(2)]
    found = suggested([trial(p, truth(p)) for p in known] * 2, 8)
    assert len({str(f) for f in found}) == 8


def test_stopped_trials_teach_by_their_own_score() -> None:
    # The early rung has low scores, all of recipes with the first switch on; only there the others vary.
    early = [trial(p, truth(p) - 1.0, rung=30) for p in points(60) if p["layer_0.on"] and p != BEST]
    off = {p.name: False for p in SWITCHES}
    full = [trial(p, truth(p)) for p in (off, off | {"layer_0.on": True}) for _ in range(4)]
    assert suggested(early + full) == [BEST] * 5


def test_failed_and_running_recipes_are_not_suggested() -> None:
    trials = [trial(p, truth(p)) for p in points(40) if p != BEST]
    for state in (TrialState.RUNNING, TrialState.FAIL):
        there = create_trial(state=state, params=BEST, distributions=CODEC.distributions)
        found = suggested([*trials, there])
        assert BEST not in found
        assert all(truth(f) >= truth(BEST) - 0.02 for f in found)


def test_it_suggests_nothing_twice_even_if_the_study_forgets() -> None:
    trials = [trial(p, truth(p)) for p in points(40) if p != BEST]
    one = sampler()
    found = [str(view(trials, one).ask(dict(CODEC.distributions)).params) for _ in range(6)]
    assert len(set(found)) == 6


def test_two_objectives_fill_the_gap_in_the_front() -> None:
    # Sizes from 1 to 6; of the best recipe of each size only that of three switches is unknown.
    order = np.argsort(-WORTH)
    best = [{p.name: bool(i in order[:k]) for i, p in enumerate(SWITCHES)} for k in range(6)]
    known = [p for p in points(60) if p not in best] + [p for k, p in enumerate(best) if k != 3]
    trials = [trial(p, truth(p), objectives=2) for p in known]
    found = suggested(trials, objectives=2)
    # Two switches are worth 2 each, so another three may be as good as the ones left out.
    assert all(repaired(f).cost == 4 and truth(f) == pytest.approx(truth(best[3])) for f in found)


def test_a_suggestion_takes_the_space_as_it_is_repaired() -> None:
    land = Landscape(bound_space("default"), "2%", 0)
    run = Run(land, "linear", 8, 0)
    assert run.duplicates == 0
    assert all(p.cost <= land.limit for p in run.points)


def test_trials_without_attributes_are_repaired_here() -> None:
    land = Landscape(bound_space(), "2%", 1)
    rng = np.random.default_rng(0)
    drawn = [draw(land.distributions, rng) for _ in range(16)]
    found = []
    for attributes in (True, False):
        trials = [trial_of(land, p, i / 10, attributes=attributes) for i, p in enumerate(drawn)]
        one = make_sampler(
            "linear", seed=0, trials=20, repaired=land.repaired, parameters=land.space.parameters
        )
        found.append(view(trials, one).ask(dict(land.distributions)).params)
    assert found[0] == found[1]

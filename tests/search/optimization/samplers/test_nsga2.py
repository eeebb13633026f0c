from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from support.landscape import view

from autopeft.search.optimization.samplers import make_sampler
from autopeft.search.optimization.samplers.nsga2 import OrderedNSGAIISampler

SPACE = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(6)} | {
    "kind": CategoricalDistribution(("a", "b", "c"))
}


def trial(level: float, values: list[float], state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    params: dict[str, Any] = dict.fromkeys(SPACE, level) | {"kind": "a"}
    return create_trial(
        state=state,
        values=values if state == TrialState.COMPLETE else None,
        params=params,
        distributions=SPACE,
    )


def inherited(params: dict[str, Any]) -> set[float]:
    """Values that come from parents; mutated ones are no round numbers."""
    return {v for k, v in params.items() if k != "kind" and round(v, 2) == v}


def asked(trials: list[FrozenTrial], population: int, count: int = 30, objectives: int = 1) -> set[float]:
    found: set[float] = set()
    sampler = OrderedNSGAIISampler(seed=0, population_size=population)
    for _ in range(count):
        found |= inherited(view(trials, sampler, objectives).ask(dict(SPACE)).params)
    return found


def test_generations_follow_from_the_order_of_finished_trials() -> None:
    trials = [trial(i / 100, [i]) for i in range(1, 11)]
    trials.insert(2, trial(0.5, [], TrialState.FAIL))
    sampler = OrderedNSGAIISampler(seed=0, population_size=4)
    study = view(trials, sampler)
    done = study.get_trials(states=(TrialState.COMPLETE,))
    assert [sampler.get_trial_generation(study, t) for t in done] == [0] * 4 + [1] * 4 + [2] * 2
    assert [[t.value for t in sampler.get_population(study, g)] for g in range(4)] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10],
        [],
    ]
    assert sampler.get_trial_generation(study, study.ask()._cached_frozen_trial) == 2


def test_the_first_generation_is_random_and_the_next_one_its_children() -> None:
    trials = [trial(i / 100, [i]) for i in range(1, 9)]
    assert asked(trials[:7], 8) == set()
    assert asked(trials, 8) <= {i / 100 for i in range(1, 9)}
    assert asked(trials, 8)


def test_only_the_best_of_both_generations_have_children() -> None:
    # The second generation is worse than the better half of the first one.
    first = [trial(i / 100, [i]) for i in range(1, 9)]
    second = [trial(i / 100, [i - 16.5]) for i in range(11, 19)]
    found = asked(first + second, 8)
    assert found <= {i / 100 for i in range(1, 9)}
    assert len(found) > 3


def test_two_objectives_keep_the_front() -> None:
    front = [trial(i / 100, [i, i]) for i in range(1, 9)]
    beaten = [trial(i / 100, [i - 20, i]) for i in range(11, 19)]
    for order in (front + beaten, beaten + front):
        assert asked(order, 8, objectives=2) <= {i / 100 for i in range(1, 9)}


def test_optunas_own_bookkeeping_is_lost_in_a_view() -> None:
    """Why there is a sampler of our own: in trials that it did not sample itself Optuna's sees no parents."""
    trials = [trial(i / 100, [i]) for i in range(1, 17)]
    found: set[float] = set()
    sampler = NSGAIISampler(seed=0, population_size=8)
    for _ in range(10):
        found |= inherited(view(trials, sampler).ask(dict(SPACE)).params)
    assert found == set()


def test_it_optimises() -> None:
    def run(name: str) -> float:
        bests = []
        for seed in range(2):
            sampler = make_sampler(name, seed=seed, trials=80)
            trials: list[FrozenTrial] = []
            for _ in range(80):
                params = view(trials, sampler).ask(dict(SPACE)).params
                score = (params["kind"] == "b") - sum((params[f"x{i}"] - 0.7) ** 2 for i in range(6))
                trials.append(create_trial(value=score, params=params, distributions=SPACE))
            bests.append(max(t.value for t in trials if t.value is not None))
        return float(np.mean(bests))

    assert run("nsga2") > run("random") + 0.02


@pytest.mark.parametrize(("trials", "population"), [(1, 8), (80, 10), (800, 50)])
def test_the_population_suits_the_number_of_trials(trials: int, population: int) -> None:
    sampler = make_sampler("nsga2", seed=0, trials=trials)
    assert isinstance(sampler, OrderedNSGAIISampler)
    assert sampler.population_size == population

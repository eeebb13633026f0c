from __future__ import annotations

import pytest
from optuna.distributions import IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autopeft.search.optimization.sampler_view import Observation, ask, gains, view_of

SPACE = {"rank": IntDistribution(0, 9)}
STEPS = (40, 120, 360)


def seen(rank: int, rungs: dict[int, float], **more: bool) -> Observation:
    return Observation({"rank": rank}, {"rank": rank * 2}, rank * 100, rungs, hash=f"h{rank}", **more)


HISTORY = [
    seen(1, {40: 0.5, 120: 0.6, 360: 0.7}),
    seen(2, {40: 0.6, 120: 0.8}),
    seen(3, {40: 0.4}),
    seen(4, {}),
    seen(5, {40: 0.9}, failed=True),
]


def test_gains_add_up_over_the_rungs() -> None:
    assert gains(HISTORY, STEPS) == pytest.approx({360: 0.0, 120: 0.1, 40: 0.1 + 0.15})
    assert gains([], STEPS) == {360: 0.0, 120: 0.0, 40: 0.0}


@pytest.mark.parametrize("objectives", [1, 2])
def test_what_stopped_early_enters_with_what_it_would_have_gained(objectives: int) -> None:
    study = view_of(HISTORY, SPACE, STEPS, RandomSampler(seed=0), objectives=objectives)
    trials = study.get_trials()
    done, running, failed = TrialState.COMPLETE, TrialState.RUNNING, TrialState.FAIL
    assert [t.state for t in trials] == [done, done, done, running, failed]
    assert [t.values[0] for t in trials[:3]] == pytest.approx([0.7, 0.9, 0.65])
    assert [len(t.values) for t in trials[:3]] == [objectives] * 3
    if objectives == 2:
        assert [t.values[1] for t in trials[:3]] == [100, 200, 300]
    attributes = trials[1].user_attrs
    assert attributes == {
        "point": {"rank": 4},
        "cost": 200,
        "hash": "h2",
        "rung": 120,
        "full": False,
        "score": 0.8,
    }
    assert trials[0].user_attrs["full"]


def test_a_suggestion_lies_in_the_space() -> None:
    study = view_of(HISTORY, SPACE, STEPS, RandomSampler(seed=0))
    assert 0 <= ask(study, SPACE)["rank"] <= 9

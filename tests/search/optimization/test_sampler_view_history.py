from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from autopeft.search.optimization.sampler_view import History, Point

SPACE = {"n": IntDistribution(0, 9)}
KNOWN = {"point": {"n": "five"}, "cost": 50, "hash": "h"}


def trial(n: int, attributes: dict[str, Any], value: float = 0.9) -> FrozenTrial:
    return create_trial(value=value, params={"n": n}, distributions=SPACE, user_attrs=attributes)


def study(*trials: FrozenTrial) -> Study:
    found = optuna.create_study(direction="maximize")
    found.add_trials(trials)
    return found


def halve(params: dict[str, Any]) -> Point | None:
    half = params["n"] // 2
    return Point({"n": half}, half * 10, f"h{half}") if half else None


def never(params: dict[str, Any]) -> Point | None:
    raise AssertionError("a point that the study knows was repaired again")


def test_a_stopped_trial_has_its_own_score_beside_the_extrapolated_value() -> None:
    (outcome,) = History.of(study(trial(7, {**KNOWN, "rung": 30, "score": 0.6})), never).outcomes
    assert (outcome.score, outcome.rung, outcome.objectives) == (0.6, 30, (0.9,))
    assert (outcome.params, outcome.values, outcome.cost) == ({"n": 7}, {"n": "five"}, 50)


@pytest.mark.parametrize("score", [None, math.nan])
def test_without_a_score_the_value_counts(score: float | None) -> None:
    (outcome,) = History.of(study(trial(7, {**KNOWN, "rung": 30, "score": score})), never).outcomes
    assert (outcome.score, outcome.rung) == (0.9, 0)


def test_what_the_study_lacks_comes_from_repair() -> None:
    history = History.of(study(trial(7, {}), trial(8, {"point": {"n": "x"}, "cost": 1})), halve)
    assert [(o.values, o.cost) for o in history.outcomes] == [({"n": 3}, 30), ({"n": "x"}, 1)]
    assert history.hashes == {"h3", "h4"}


def test_unfinished_trials_count_and_have_hashes_but_no_outcome() -> None:
    trials = [
        create_trial(state=state, params={"n": n}, distributions=SPACE)
        for n, state in ((6, TrialState.RUNNING), (8, TrialState.FAIL))
    ]
    history = History.of(study(*trials, trial(2, {})), halve)
    assert (len(history.outcomes), history.trials, history.hashes) == (1, 3, {"h3", "h4", "h1"})


def test_a_trial_that_cannot_be_repaired_teaches_nothing() -> None:
    history = History.of(study(trial(1, {}), trial(1, {"point": {}, "cost": 0, "hash": ""})), halve)
    assert (history.outcomes, history.hashes, history.trials) == ([], set(), 2)


def test_the_trial_being_asked_is_left_out() -> None:
    empty = optuna.create_study()
    empty.ask()
    assert History.of(empty, never) == History([], set(), 0)


def test_values_that_are_not_finite_are_left_out() -> None:
    assert History.of(study(trial(7, KNOWN, math.inf)), never).outcomes == []

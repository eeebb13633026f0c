"""AutoPEFT's sampler: what it models, how it searches, and that it proposes what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState, create_trial
from support.landscape import view

from autopeft.errors import UsageError
from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.hypervolume import hypervolume
from autopeft.search.optimization.samplers import Point, noisy_hypervolume
from autopeft.search.optimization.samplers.linear import draw
from autopeft.search.optimization.samplers.noisy_hypervolume import (
    NUMBERS,
    Acquisition,
    NoisyHypervolumeSampler,
    copula,
)
from autopeft.search.space.parameters import Parameter

Array = NDArray[np.float64]
SIZES = tuple(range(11))
SPACE = [
    *(Parameter(name, "categorical", SIZES, sizes=SIZES) for name in ("serial", "parallel", "prefix")),
    *(Parameter(f"layer_{i}.on", "categorical", (True, False)) for i in range(6)),
    Parameter("fixed", "categorical", ("x",)),
]
CODEC = Codec(SPACE)
MOST = 90


def repaired(params: dict[str, Any]) -> Point | None:
    """No more than `MOST` parameters: the prefix gives way; without a size or a layer there is no recipe."""
    values = CODEC.decode(params)
    layers = sum(values[f"layer_{i}.on"] for i in range(6))
    while layers and values["prefix"] and layers * _sizes(values) > MOST:
        values["prefix"] -= 1
    if not 0 < layers * _sizes(values) <= MOST:
        return None
    return Point(values, layers * _sizes(values), repr(sorted(values.items())))


def _sizes(values: dict[str, Any]) -> int:
    return int(values["serial"] + values["parallel"] + values["prefix"])


def truth(values: dict[str, Any]) -> float:
    return 0.5 + 0.03 * values["serial"] + 0.01 * values["prefix"] + 0.02 * values["layer_2.on"]


def trial(params: dict[str, Any], *, running: bool = False) -> FrozenTrial:
    point = repaired(params)
    assert point is not None
    return create_trial(
        state=TrialState.RUNNING if running else TrialState.COMPLETE,
        values=None if running else [truth(dict(point.values)), float(point.cost)],
        params=params,
        distributions=CODEC.distributions,
        user_attrs={"point": dict(point.values), "cost": point.cost, "hash": point.hash},
    )


def points(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        params = draw(CODEC.distributions, rng)
        if repaired(params) is not None:
            found.append(params)
    return found


def sampler(seed: int = 0, startup: int = 4) -> NoisyHypervolumeSampler:
    return NoisyHypervolumeSampler(seed=seed, startup=startup, repair=repaired, parameters=SPACE)


class Planted:
    """In the place of the processes: an acquisition that is highest at a target, and what it was asked."""

    def __init__(self, target: Array) -> None:
        self.target, self.fits, self.waiting = target, 0, 0
        self.asked: list[tuple[float, tuple[float, ...]]] = []

    def __call__(self, points: Array, values: Array, *, seed: int) -> Callable[[Array], Acquisition]:
        self.fits += 1

        def beside(waiting: Array) -> Acquisition:
            self.waiting = len(waiting)

            def acquisition(at: Array) -> Array:
                worth: Array = -np.abs(at - self.target).sum(axis=1)
                self.asked += zip(worth.tolist(), map(tuple, at.tolist()), strict=True)
                return worth

            return acquisition

        return beside


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    found = Planted(np.array(INSIDE))
    monkeypatch.setattr("autopeft.search.optimization.samplers.noisy_hypervolume.noisy_hypervolume", found)
    return found


def test_values_become_normal_quantiles_of_their_share() -> None:
    columns = np.array([[1.0, 4.0], [2.0, 3.0], [3.0, 2.0], [4.0, 1.0]])
    expected = np.array([-0.6745, 0.0, 0.6745, 3.7190])
    found = copula(columns)
    assert found[:, 0] == pytest.approx(expected, abs=1e-4)
    assert found[:, 1] == pytest.approx(expected[::-1], abs=1e-4)


def test_the_papers_hypervolume_of_one_recipe() -> None:
    """(1.38 %, 0.722) with the reference (26 %, 0.7)."""
    assert hypervolume([(0.722, 1.38)], (0.7, 26.0)) == pytest.approx(0.54164)


def test_sizes_and_switches_are_encoded_from_0_to_1() -> None:
    values = {"serial": 10, "parallel": 0, "prefix": 4, "fixed": "x"}
    values |= {f"layer_{i}.on": i != 0 for i in range(6)}
    assert sampler().encode([values]).tolist() == [[1.0, 0.0, 0.4, 1, 0, 0, 0, 0, 0]]


INSIDE, BEYOND = (0.3, 0.7, 0.1, 0, 1, 0, 1, 0, 1), (1.0, 0.9, 1.0, 0, 0, 0, 0, 1, 0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("target", [INSIDE, BEYOND])
def test_what_is_proposed_is_what_was_found_best(
    planted: Planted, target: tuple[float, ...], seed: int
) -> None:
    """The authors' code trains a start of the search and notes down its end. Beyond the budget no recipe is
    at the target, and starts end in several places."""
    planted.target = np.array(target)
    study = view([trial(p) for p in points(8, seed)], sampler(seed), objectives=2)
    params = study.ask(dict(CODEC.distributions)).params
    point = repaired(params)
    assert point is not None
    proposed = tuple(sampler().encode([point.values])[0].tolist())
    best = max(planted.asked)[0]
    assert proposed in [at for worth, at in planted.asked if worth == best]
    assert params == {**params, **CODEC.encode(point.values)}, "it needs no repair"
    assert best > (-0.35 if target == INSIDE else -2.5), "the search climbs"
    assert len(planted.asked) <= NUMBERS.evaluations


def test_no_recipe_is_proposed_twice(planted: Planted) -> None:
    trials = [trial(p) for p in points(8)]
    for _ in range(12):
        params = view(trials, sampler(), objectives=2).ask(dict(CODEC.distributions)).params
        new = trial(params)
        assert new.user_attrs["hash"] not in {t.user_attrs["hash"] for t in trials}
        trials.append(new)


def test_half_are_random_and_each_fit_serves_four(planted: Planted) -> None:
    own, trials = sampler(startup=6), [trial(p) for p in points(2)]
    fits, waiting = [], []
    for _ in range(14):
        trials.append(trial(view(trials, own, objectives=2).ask(dict(CODEC.distributions)).params))
        fits.append(planted.fits)
        waiting.append(planted.waiting)
    assert fits == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 2
    assert waiting[4:] == [0, 1, 2, 3] * 2 + [0, 1], "those that ended since the fit count as running"


def test_recipes_that_still_run_are_known_to_it(planted: Planted) -> None:
    *ended, running = points(9)
    study = view([*map(trial, ended), trial(running, running=True)], sampler(), objectives=2)
    study.ask(dict(CODEC.distributions))
    assert planted.waiting == 1


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        (Parameter("rate", "float", low=1e-4, high=1e-2, log=True), "rate is a range without steps"),
        (Parameter("kind", "categorical", ("a", "b", "c")), "kind is choices without an order"),
    ],
)
def test_what_has_no_steps_or_no_order_is_refused(parameter: Parameter, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        NoisyHypervolumeSampler(seed=0, startup=2, repair=repaired, parameters=[*SPACE, parameter])


def test_the_processes_prefer_what_scores_and_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("botorch")
    short = NUMBERS.model_copy(update={"warm_up": 32, "samples": 16})
    monkeypatch.setattr(noisy_hypervolume, "NUMBERS", short)
    rng = np.random.default_rng(0)
    known = rng.integers(0, 11, (24, 3)) / 10
    values = np.column_stack([known[:, 0] * (known[:, 0] < 0.9), -known[:, 1]])  # the third means nothing
    acquisition = noisy_hypervolume.noisy_hypervolume(known, copula(values), seed=0)(np.zeros((0, 3)))
    good, large, bad = acquisition(np.array([[0.8, 0.0, 0.5], [0.8, 1.0, 0.5], [0.1, 0.9, 0.5]]))
    assert good > 2 * max(large, bad)
    again = noisy_hypervolume.noisy_hypervolume(known, copula(values), seed=0)
    assert again(np.zeros((0, 3)))(np.array([[0.8, 0.0, 0.5]]))[0] == pytest.approx(good)
    beside = again(np.array([[0.8, 0.0, 0.5]]))(np.array([[0.8, 0.0, 0.4]]))
    assert beside[0] < good / 2, "one that runs already leaves little to add"

"""Samplers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autopeft.errors import UsageError, near
from autopeft.search.optimization.samplers.evolution import EvolutionSampler
from autopeft.search.optimization.samplers.linear import LinearSampler
from autopeft.search.optimization.samplers.nsga2 import OrderedNSGAIISampler
from autopeft.search.optimization.samplers.observations import Repair

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["SAMPLERS", "default_sampler", "make_sampler"]


@dataclass(frozen=True)
class _Setting:
    seed: int
    trials: int
    startup: int
    objectives: int
    repair: Repair | None
    parameters: Sequence[Parameter]


def _gp(s: _Setting) -> BaseSampler:
    if find_spec("scipy") is None:
        raise UsageError("The sampler 'gp' needs scipy: install scipy, or choose --sampler tpe.")
    return GPSampler(seed=s.seed, n_startup_trials=s.startup)


def _tpe(s: _Setting) -> BaseSampler:
    return TPESampler(seed=s.seed, n_startup_trials=s.startup, multivariate=True, constant_liar=True)


def _nsga2(s: _Setting) -> BaseSampler:
    # Some eight generations; half as many find less with 60 trials and with 150.
    return OrderedNSGAIISampler(seed=s.seed, population_size=max(8, min(50, s.trials // 8)))


def _evolution(s: _Setting) -> BaseSampler:
    return EvolutionSampler(
        seed=s.seed,
        startup=s.startup,
        population=max(6, min(30, s.trials // 3)),
        repair=s.repair,
        parameters=s.parameters,
        objectives=s.objectives,
    )


def _linear(s: _Setting) -> BaseSampler:
    return LinearSampler(
        seed=s.seed,
        startup=s.startup,
        repair=s.repair,
        parameters=s.parameters,
        objectives=s.objectives,
    )


def _random(s: _Setting) -> BaseSampler:
    return RandomSampler(seed=s.seed)


SAMPLERS: dict[str, Callable[[_Setting], BaseSampler]] = {
    "gp": _gp,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "evolution": _evolution,
    "linear": _linear,
    "random": _random,
}


def default_sampler(objectives: int = 1) -> str:
    """`tpe` for the score, `linear` for score and size.

    The simplest that no other beats in `experiments/samplers`, by what its confirmed winner lacks, or by its
    hypervolume, after 12, 30 and 60 trials.
    """
    return "tpe" if objectives == 1 else "linear"


def make_sampler(
    name: str,
    *,
    seed: int,
    trials: int,
    objectives: int = 1,
    repaired: Repair | None = None,
    parameters: Sequence[Parameter] = (),
) -> BaseSampler:
    """A sampler for a study of about `trials` trials; a third of them, at most 10, are drawn at random before
    it models.

    Args:
        objectives: 1 for the score alone, 2 for score and deployed parameters.
        repaired: maps Optuna's parameters of a suggestion to the repaired point, `None` where there is none.
            With it `linear` and `evolution` propose no recipe twice; without it they take
            parameters as they are.
        parameters: of the space. Without them `linear`, and `evolution` with two objectives, see parameters
            as they were before repair.

    Raises:
        UsageError: there is no sampler of this name, or a package that it needs is missing.
    """
    if name not in SAMPLERS:
        raise UsageError(
            f"There is no sampler {name!r}.{near(name, SAMPLERS)} Samplers: {', '.join(SAMPLERS)}."
        )
    startup = max(2, min(10, trials // 3))
    setting = _Setting(seed, trials, startup, objectives, repaired, tuple(parameters))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](setting)

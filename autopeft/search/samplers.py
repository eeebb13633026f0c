"""Samplers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from autopeft.errors import UsageError, near

__all__ = ["SAMPLERS", "default_sampler", "make_sampler"]


def _gp(seed: int, startup: int) -> BaseSampler:
    if find_spec("scipy") is None:
        raise UsageError("The sampler 'gp' needs scipy: install scipy, or choose --sampler tpe.")
    return GPSampler(seed=seed, n_startup_trials=startup)


def _tpe(seed: int, startup: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=startup)


def _random(seed: int, startup: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {"gp": _gp, "tpe": _tpe, "random": _random}


def default_sampler() -> str:
    """`gp` where scipy is installed, else `tpe`."""
    return "gp" if find_spec("scipy") is not None else "tpe"


def make_sampler(name: str, *, seed: int, trials: int) -> BaseSampler:
    """A sampler for a study of about `trials` trials; a third of them, at most 10, are drawn before it
    models.

    Raises:
        UsageError: there is no sampler of this name, or a package that it needs is missing.
    """
    if name not in SAMPLERS:
        raise UsageError(
            f"There is no sampler {name!r}.{near(name, SAMPLERS)} Samplers: {', '.join(SAMPLERS)}."
        )
    startup = max(2, min(10, trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed, startup)

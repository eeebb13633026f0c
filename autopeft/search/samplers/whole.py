"""Base of the samplers that propose all parameters at once and never one recipe twice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autopeft.search.samplers.history import History, Point, Repair
from autopeft.search.samplers.moves import Distributions, draw

__all__ = ["WholeSampler"]

_Key = tuple[tuple[str, type[Any], Any], ...]

_TRIES = 64
_REMEMBERED = 1 << 12


class WholeSampler(BaseSampler):
    """Draws at random until `startup` trials are known, then asks `propose`.

    The first suggestion of an empty study is always random: Optuna tells a sampler the parameters only
    through the study's trials.

    Args:
        startup: trials, of any state, before `propose` is asked.
        repair: maps Optuna's parameters to the repaired point, `None` where there is none; without it
            parameters are taken as they are.
    """

    def __init__(self, *, seed: int, startup: int, repair: Repair | None) -> None:
        self._rng = np.random.default_rng(seed)
        self._startup = startup
        self._repair = repair or _as_it_is
        self._points: dict[_Key, Point | None] = {}
        self._proposed: set[str] = set()

    @abstractmethod
    def propose(self, history: History, space: Distributions) -> dict[str, Any] | None:
        """Parameters for the next trial, or `None` to draw at random."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The distributions of the latest trial, those of a single value too: repair needs all values."""
        for other in reversed(study.get_trials(deepcopy=False)):
            if other.distributions:
                return dict(other.distributions)
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """All parameters of the next trial; nothing, which has them drawn one by one, in an empty study."""
        if not search_space:
            return {}
        history = History.of(study, self.repaired)
        params = None
        if history.asked >= self._startup and history.outcomes:
            params = self.propose(history, search_space)
        if params is None:
            params = self.fresh(lambda: draw(search_space, self._rng), history)
        params = params or draw(search_space, self._rng)
        if (point := self.repaired(params)) is not None:
            self._proposed.add(point.hash)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return draw({param_name: param_distribution}, self._rng)[param_name]

    def fresh(self, make: Callable[[], dict[str, Any]], history: History) -> dict[str, Any] | None:
        """The first made point whose recipe is new, `None` if a few dozen are all known."""
        for _ in range(_TRIES):
            params = make()
            if (point := self.repaired(params)) is not None and self.is_new(point, history):
                return params
        return None

    def is_new(self, point: Point, history: History) -> bool:
        """Whether a recipe is neither in the study nor was proposed here before."""
        return point.hash not in history.hashes and point.hash not in self._proposed

    def repaired(self, params: dict[str, Any]) -> Point | None:
        """The repaired point of Optuna's parameters; each is repaired once."""
        key = _key(params)
        if key not in self._points:
            if len(self._points) >= _REMEMBERED:
                self._points.clear()
            self._points[key] = self._repair(params)
        return self._points[key]


def _key(params: Mapping[str, Any]) -> _Key:
    """Tells True from 1, which are equal and hash alike."""
    return tuple((name, type(value), value) for name, value in sorted(params.items()))


def _as_it_is(params: dict[str, Any]) -> Point:
    return Point(params, 0, repr(_key(params)))

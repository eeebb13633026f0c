"""Base of the samplers that propose all parameters at once and never one recipe twice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.samplers.mutation import Distributions, draw
from autopeft.search.optimization.samplers.observations import History, Point, Repair

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

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
        parameters: of the space; without them `genes` are always those before repair.
        objectives: 1 (score), or 2 (score, cost).
    """

    def __init__(
        self,
        *,
        seed: int,
        startup: int,
        repair: Repair | None = None,
        parameters: Sequence[Parameter] = (),
        objectives: int = 1,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._startup = startup
        self._repair = repair or _as_it_is
        # Without repair the values of a point are Optuna's parameters already.
        self._parameters = () if repair is None else tuple(parameters)
        self._codec = Codec(self._parameters)
        self._objectives = objectives
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

    def genes(self, params: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """What a child of a recipe is made from: Optuna's parameters before repair, or the repaired ones.

        Where the score alone counts, those before repair are better parents: what repair took away comes
        back with the next change. Where the size counts too they are not: they may lie so far above the
        budget that no change leads to a smaller recipe.
        """
        return dict(params) if self._objectives == 1 else {**params, **self._codec.encode(values)}

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

"""Thompson sampling with a Bayesian linear regression, over repaired candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autopeft.search.optimization.hypervolume import improvement, shortfall
from autopeft.search.optimization.samplers.base import WholeSampler
from autopeft.search.optimization.samplers.bayesian_linear import Regression
from autopeft.search.optimization.samplers.features import Features, plain_parameters
from autopeft.search.optimization.samplers.mutation import Distributions, draw, mutate
from autopeft.search.optimization.samplers.observations import History, Repair

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["LinearSampler"]

_Array = NDArray[np.float64]

_RANDOM = 96
_ROUNDS = 4
_PARENTS = 10
_CHILDREN = 64
# By how much the root of the reference's cost exceeds that of the costliest recipe.
_MARGIN = 0.05


class LinearSampler(WholeSampler):
    """Draws weights from the posterior of a linear regression and climbs what they say, over new recipes.

    Trials that were stopped teach through their own score, with an intercept for each rung. Two objectives:
    costs are known beforehand, so drawn scores give a front; the candidate that adds most hypervolume to it
    is taken.

    Args:
        objectives: 1 (score), or 2 (score, cost).
        parameters: of the space; without them the features are those of Optuna's parameters, before repair.

    Raises:
        ValueError: two objectives without `repair`, which knows the costs.
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
        if objectives > 1 and repair is None:
            raise ValueError("Two objectives need `repair`, which knows the costs of candidates.")
        super().__init__(
            seed=seed, startup=startup, repair=repair, parameters=parameters, objectives=objectives
        )

    def propose(self, history: History, space: Distributions) -> dict[str, Any] | None:
        """The best of the candidates under one draw, `None` if none is new."""
        known = [self._member(o.params, o.values, o.cost) for o in history.outcomes]
        features = Features(self._parameters or plain_parameters(space))
        columns = features.of([m.values for m in known])
        scores, rungs = np.array([o.score for o in history.outcomes]), [o.rung for o in history.outcomes]
        weights = Regression(*columns, scores, rungs).draw(self._rng)
        pool = _Pool(features, weights, known, self._objectives)
        made: set[str] = set()
        tries = [draw(space, self._rng) for _ in range(_RANDOM)]
        for turn in range(1 + _ROUNDS):
            if turn > 0:
                parents = [m.params for m in pool.best(_PARENTS)]
                tries = [mutate(parents[i % len(parents)], space, self._rng) for i in range(_CHILDREN)]
            pool.add(self._new(tries, made, history))
        best = pool.best_new()
        return None if best is None else dict(best.params)

    def _new(self, tries: Iterable[dict[str, Any]], made: set[str], history: History) -> list[_Member]:
        """Those that are neither known nor in `made`, which gets them."""
        new = []
        for params in tries:
            point = self.repaired(params)
            if point is not None and point.hash not in made and self.is_new(point, history):
                made.add(point.hash)
                new.append(self._member(params, point.values, point.cost))
        return new

    def _member(self, params: Mapping[str, Any], values: Mapping[str, Any], cost: float) -> _Member:
        return _Member(self.genes(params, values), values if self._parameters else params, cost)


@dataclass(frozen=True)
class _Member:
    """A recipe: its parameters, as suggested and as a parent's, and the values of its features."""

    params: Mapping[str, Any]
    values: Mapping[str, Any]
    cost: float


class _Pool:
    """Known recipes and candidates, with scores by drawn weights."""

    def __init__(
        self, features: Features, weights: tuple[_Array, _Array], known: Sequence[_Member], objectives: int
    ) -> None:
        self._features, self._weights, self._objectives = features, weights, objectives
        self._members: list[_Member] = []
        self._drawn = np.zeros(0)
        self.add(known)
        self._known = len(known)

    def add(self, members: Sequence[_Member]) -> None:
        """Take in candidates."""
        if members:
            single, pairs = self._features.of([m.values for m in members])
            drawn = single @ self._weights[0] + pairs @ self._weights[1]
            self._members += members
            self._drawn = np.concatenate([self._drawn, drawn])

    def best(self, count: int) -> list[_Member]:
        """Those of highest merit, the best first."""
        return [self._members[i] for i in np.argsort(-self._merit(), kind="stable")[:count]]

    def best_new(self) -> _Member | None:
        """The best candidate, `None` if there is none."""
        if len(self._members) == self._known:
            return None
        return self._members[self._known + int(np.argmax(self._merit()[self._known :]))]

    def _merit(self) -> _Array:
        """One objective: the drawn score. Two: what a recipe adds to the front of the known ones; of those
        that add nothing, minus what they lack."""
        if self._objectives == 1:
            return self._drawn
        # Roots: plain sizes leave small recipes unexplored, logarithms spend half of the search on them.
        costs = np.sqrt([m.cost for m in self._members])
        points = np.column_stack([self._drawn, costs])
        known = points[: self._known]
        reference = (float(known[:, 0].min()), float(costs.max()) * (1 + _MARGIN))
        gain = improvement(points, known, reference)
        return np.where(gain > 0, gain, -shortfall(points, known))

"""Thompson sampling with a Bayesian linear regression, over repaired recipes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.hypervolume import improvement, shortfall
from autopeft.search.optimization.samplers.bayesian_linear import Regression
from autopeft.search.optimization.samplers.features import Features
from autopeft.search.optimization.samplers.mutation import Distributions, draw, mutate
from autopeft.search.optimization.samplers.observations import History, Point, Repair

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["LinearSampler"]

_Key = tuple[tuple[str, type[Any], Any], ...]

_RANDOM = 96
_ROUNDS = 4
_PARENTS = 10
_CHILDREN = 64
_TRIES = 64
_REMEMBERED = 1 << 12
# By how much the root of the reference's cost exceeds that of the costliest recipe.
_MARGIN = 0.05


@dataclass(frozen=True)
class _Member:
    """A known or a candidate recipe.

    Attributes:
        genes: Optuna's parameters from which its children are made.
        values: of the space, after repair.
    """

    genes: Mapping[str, Any]
    values: Mapping[str, Any]
    cost: float


class LinearSampler(BaseSampler):
    """Draws weights from the posterior of a linear regression and climbs what they say, over new recipes.

    Until `startup` trials are known it draws at random, and so does the first suggestion of an empty study:
    Optuna tells a sampler the parameters only through the study's trials. Trials that were stopped teach
    through their own score, with an intercept for each rung. Two objectives: costs are known beforehand, so
    drawn scores give a front; the candidate that adds most hypervolume to it is taken. No recipe is proposed
    twice until the space is exhausted.

    Args:
        startup: trials, of any state, before the regression is asked.
        repair: maps Optuna's parameters to the repaired point, `None` where there is none.
        parameters: of the space.
        objectives: 1 (score), or 2 (score, cost).
    """

    def __init__(
        self, *, seed: int, startup: int, repair: Repair, parameters: Sequence[Parameter], objectives: int = 1
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._startup, self._repair, self._objectives = startup, repair, objectives
        self._features, self._codec = Features(parameters), Codec(parameters)
        self._points: dict[_Key, Point | None] = {}
        self._proposed: set[str] = set()

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
        history = History.of(study, self._repaired)
        params = None
        if history.asked >= self._startup and history.outcomes:
            params = self._climb(history, search_space)
        if params is None:
            drawn = (draw(search_space, self._rng) for _ in range(_TRIES))
            params = next((p for p in drawn if self._new(p, history)), None)
        params = params or draw(search_space, self._rng)
        if (point := self._repaired(params)) is not None:
            self._proposed.add(point.hash)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A random value."""
        return draw({param_name: param_distribution}, self._rng)[param_name]

    def _climb(self, history: History, space: Distributions) -> dict[str, Any] | None:
        """The best new recipe under one draw of the weights, `None` if none is new.

        Candidates are random ones at first, then children of the best known and new ones, round by round.
        """
        known = [self._member(o.params, o.values, o.cost) for o in history.outcomes]
        columns = self._features.of([m.values for m in known])
        scores, rungs = np.array([o.score for o in history.outcomes]), [o.rung for o in history.outcomes]
        single, pairs = Regression(*columns, scores, rungs).draw(self._rng)

        def score(members: Sequence[_Member]) -> NDArray[np.float64]:
            of_single, of_pairs = self._features.of([m.values for m in members])
            return of_single @ single + of_pairs @ pairs

        members, drawn = list(known), score(known)
        made: set[str] = set()
        tries = [draw(space, self._rng) for _ in range(_RANDOM)]
        for turn in range(1 + _ROUNDS):
            if turn > 0:
                best = np.argsort(-self._merit(members, drawn, len(known)), kind="stable")[:_PARENTS]
                parents = [members[i].genes for i in best]
                tries = [mutate(parents[i % len(parents)], space, self._rng) for i in range(_CHILDREN)]
            if new := self._candidates(tries, made, history):
                members, drawn = [*members, *new], np.concatenate([drawn, score(new)])
        if len(members) == len(known):
            return None
        merit = self._merit(members, drawn, len(known))[len(known) :]
        return dict(members[len(known) + int(np.argmax(merit))].genes)

    def _candidates(
        self, tries: Iterable[Mapping[str, Any]], made: set[str], history: History
    ) -> list[_Member]:
        """Those that are neither known nor in `made`, which gets their hashes."""
        found = []
        for params in tries:
            point = self._new(params, history)
            if point is not None and point.hash not in made:
                made.add(point.hash)
                found.append(self._member(params, point.values, point.cost))
        return found

    def _member(self, params: Mapping[str, Any], values: Mapping[str, Any], cost: float) -> _Member:
        """A recipe with the genes of its children.

        Where the score alone counts, parameters before repair are better parents: what repair took away
        comes back with the next change. Where the size counts too they are not: they may lie so far above
        the budget that no change leads to a smaller recipe.
        """
        genes = params if self._objectives == 1 else {**params, **self._codec.encode(values)}
        return _Member(genes, values, cost)

    def _merit(
        self, members: Sequence[_Member], drawn: NDArray[np.float64], known: int
    ) -> NDArray[np.float64]:
        """One objective: the drawn score. Two: what a recipe adds to the front of the first `known` ones; of
        those that add nothing, minus what they lack."""
        if self._objectives == 1:
            return drawn
        # Roots: plain sizes leave small recipes unexplored, logarithms spend half of the search on them.
        costs = np.sqrt([m.cost for m in members])
        points = np.column_stack([drawn, costs])
        reference = (float(drawn[:known].min()), float(costs.max()) * (1 + _MARGIN))
        gain = improvement(points, points[:known], reference)
        return np.where(gain > 0, gain, -shortfall(points, points[:known]))

    def _new(self, params: Mapping[str, Any], history: History) -> Point | None:
        """The repaired point, `None` where there is none, it is in the study or it was proposed before."""
        point = self._repaired(dict(params))
        if point is None or point.hash in history.hashes or point.hash in self._proposed:
            return None
        return point

    def _repaired(self, params: dict[str, Any]) -> Point | None:
        """The repaired point of Optuna's parameters; each is repaired once."""
        # The type tells True from 1, which are equal and hash alike.
        key = tuple((name, type(value), value) for name, value in sorted(params.items()))
        if key not in self._points:
            if len(self._points) >= _REMEMBERED:
                self._points.clear()
            self._points[key] = self._repair(params)
        return self._points[key]

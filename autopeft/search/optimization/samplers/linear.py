"""Thompson sampling with a Bayesian linear regression, over repaired recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autopeft.search.optimization.distributions import Codec
from autopeft.search.optimization.hypervolume import improvement, shortfall
from autopeft.search.optimization.sampler_view import History, Point, Repair
from autopeft.search.optimization.samplers.regression import Features, Regression

if TYPE_CHECKING:
    from autopeft.search.space.parameters import Parameter

__all__ = ["Distributions", "LinearSampler", "draw", "mutate"]

_Key = tuple[tuple[str, type[Any], Any], ...]

Distributions = Mapping[str, BaseDistribution]

_CHANGES, _ODDS = (1, 2, 3), (0.5, 0.3, 0.2)
_REDRAW = 0.2
_STEP = 0.15
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
    """Draws weights from the posterior of a linear regression and searches new recipes for the highest score
    that they predict.

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
        if history.trials >= self._startup and history.outcomes:
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
            new = []
            for params in tries:
                point = self._new(params, history)
                if point is not None and point.hash not in made:
                    made.add(point.hash)
                    new.append(self._member(params, point.values, point.cost))
            if new:
                members, drawn = [*members, *new], np.concatenate([drawn, score(new)])
        if len(members) == len(known):
            return None
        merit = self._merit(members, drawn, len(known))[len(known) :]
        return dict(members[len(known) + int(np.argmax(merit))].genes)

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
        """One objective: the drawn score. Two: the hypervolume that a recipe adds to the front of the first
        `known` ones; where it adds none, minus what it lacks in score."""
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


# Random points, and small changes of a point
# --------------------------------------------------------------------------------------------------------


def draw(space: Distributions, rng: np.random.Generator) -> dict[str, Any]:
    """A point drawn uniformly, or log-uniformly where a distribution says so."""
    return {name: _draw(d, rng) for name, d in space.items()}


def mutate(params: Mapping[str, Any], space: Distributions, rng: np.random.Generator) -> dict[str, Any]:
    """A copy with one to three parameters changed: numbers mostly to a near value, categories to another.

    Every value of the result lies in its distribution, whatever came in.
    """
    names = [name for name, d in space.items() if not d.single()]
    count = min(len(names), int(rng.choice(_CHANGES, p=_ODDS)))
    changed = {names[i] for i in rng.choice(len(names), size=count, replace=False)} if names else set()
    child: dict[str, Any] = {}
    for name, d in space.items():
        if not _holds(d, params.get(name)):
            child[name] = _draw(d, rng)
        else:
            child[name] = _moved(d, params[name], rng) if name in changed else params[name]
    return child


def _holds(d: BaseDistribution, value: Any) -> bool:
    try:
        return bool(d._contains(d.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False


def _draw(d: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(d, CategoricalDistribution):
        return d.choices[int(rng.integers(len(d.choices)))]
    low, high = _ends(d)
    return _value(d, rng.uniform(low, high))


def _moved(d: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    """Another value."""
    if isinstance(d, CategoricalDistribution):
        others = [c for c in d.choices if c is not value and c != value]
        return others[int(rng.integers(len(others)))] if others else value
    low, high = _ends(d)
    if rng.random() < _REDRAW:
        moved = _value(d, rng.uniform(low, high))
    else:
        scaled = math.log(value) if getattr(d, "log", False) else value
        moved = _value(d, scaled + rng.normal(0.0, _STEP) * (high - low))
    if moved != value:
        return moved
    # The next step up or down; without steps, where a move led beyond the end that it came from, any value.
    step = getattr(d, "step", None)
    if not step:
        return _draw(d, rng)
    ends = [v for v in (value - step, value + step) if d.low <= v <= d.high]  # type: ignore[attr-defined]
    return ends[int(rng.integers(len(ends)))] if ends else value


def _ends(d: BaseDistribution) -> tuple[float, float]:
    """The range in which a number is drawn, as logarithms where it is logarithmic. Steps at both ends get
    their full share."""
    assert isinstance(d, FloatDistribution | IntDistribution)
    half = (d.step or 0) / 2
    low, high = d.low - half, d.high + half
    return (math.log(low), math.log(high)) if d.log else (low, high)


def _value(d: BaseDistribution, scaled: float) -> Any:
    """The distribution's value nearest to a point of the range that `_ends` gives."""
    assert isinstance(d, FloatDistribution | IntDistribution)
    value = math.exp(min(scaled, 700.0)) if d.log else scaled
    if d.step:
        value = d.low + round((value - d.low) / d.step) * d.step
    value = min(max(value, d.low), d.high)
    return round(value) if isinstance(d, IntDistribution) else float(value)

"""Random points of a space, and small changes of a point, in Optuna's parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

__all__ = ["Distributions", "draw", "mutate"]

Distributions = Mapping[str, BaseDistribution]

_CHANGES, _ODDS = (1, 2, 3), (0.5, 0.3, 0.2)
_REDRAW = 0.2
_STEP = 0.15


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
        scaled = (math.log(value) if _is_log(d) else value) + rng.normal(0.0, _STEP) * (high - low)
        moved = _value(d, scaled)
    return _neighbour(d, value, rng) if moved == value else moved


def _neighbour(d: BaseDistribution, value: Any, rng: np.random.Generator) -> Any:
    """The next step up or down; without steps, where a move led beyond the end that it came from, any
    value."""
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


def _is_log(d: BaseDistribution) -> bool:
    return bool(getattr(d, "log", False))


def _value(d: BaseDistribution, scaled: float) -> Any:
    """The distribution's value nearest to a point of the range that `_ends` gives."""
    assert isinstance(d, FloatDistribution | IntDistribution)
    value = math.exp(min(scaled, 700.0)) if d.log else scaled
    if d.step:
        value = d.low + round((value - d.low) / d.step) * d.step
    value = min(max(value, d.low), d.high)
    return round(value) if isinstance(d, IntDistribution) else float(value)

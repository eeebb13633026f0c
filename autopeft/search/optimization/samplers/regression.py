"""Bayesian linear regression of scores on features of recipes, with a free intercept for each rung.

The features say what is in a recipe, how much of it, and which pairs are in one layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autopeft.search.space.parameters import Parameter

__all__ = ["Features", "Regression"]

_Array = NDArray[np.float64]
_Key = tuple[bool, Any]

# Positive sizes that span more than this are compared by their logarithm.
_SPAN = 4.0
_LAYER = re.compile(r"layer_(\d+)\.")
# Variance of the pairs' weights as a share of that of single ones; noise variance as a share of the mean
# variance of the signal.
_PAIRS = (0.0, 0.03, 0.1, 0.3, 1.0)
_NOISE = np.geomspace(1e-3, 1e2, 26)


class Features:
    """Columns of values of a space, for the parameters that can vary.

    A category becomes one column for each choice, or one of −1 and 1 for two choices. A number becomes
    its place in its range, from −1 to 1 (by the logarithm, where the space says so or sizes span much), and
    that place squared; a size that may be 0 also gets a column that says whether it is there, and its
    place counts only then. Pairs are products of the columns (squares left out) of two parameters, unless
    these belong to different layers.

    Args:
        parameters: of the space.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._axes = [axis for p in parameters if (axis := _axis(p)) is not None]
        layers: list[int | None] = []
        owner: list[int] = []
        for i, axis in enumerate(self._axes):
            found = _LAYER.match(axis.name)
            owner += [i] * axis.width
            layers += [int(found[1]) if found else None] * axis.width
        own = np.array(owner, dtype=np.int64)
        place = np.array([-1 if layer is None else layer for layer in layers], dtype=np.int64)
        left, right = np.triu_indices(len(own), 1)
        near = (place[left] == place[right]) | (place[left] < 0) | (place[right] < 0)
        keep = near & (own[left] != own[right])
        self._left, self._right = left[keep], right[keep]

    def of(self, points: Sequence[Mapping[str, Any]]) -> tuple[_Array, _Array]:
        """Columns of single parameters, (n, d), and of pairs, (n, e)."""
        if not self._axes:
            return np.zeros((len(points), 0)), np.zeros((len(points), 0))
        blocks = [np.array([a.columns(point[a.name]) for point in points]) for a in self._axes]
        linear = [b.reshape(len(points), -1)[:, : a.width] for a, b in zip(self._axes, blocks, strict=True)]
        squares = [b.reshape(len(points), -1)[:, a.width :] for a, b in zip(self._axes, blocks, strict=True)]
        first = np.hstack(linear)
        return np.hstack([first, *squares]), first[:, self._left] * first[:, self._right]


class _Axis:
    """One parameter's columns: `width` linear ones, then squares."""

    def __init__(self, name: str, width: int, columns: Callable[[Any], tuple[float, ...]]) -> None:
        self.name, self.width, self.columns = name, width, columns


def _axis(p: Parameter) -> _Axis | None:
    if p.kind != "categorical":
        return None if p.low == p.high else _number(p.name, p.low, p.high, log=p.log)
    if len(p.choices) < 2:
        return None
    if p.ordered:
        sizes = dict(zip(map(_key, p.choices), p.sizes, strict=True))
        positive = [s for s in p.sizes if s > 0]
        log = min(p.sizes) >= 0 and len(positive) > 0 and max(positive) > _SPAN * min(positive)
        low = min(positive) if log else min(p.sizes)
        return _number(p.name, low, max(p.sizes), log=log, absent=min(p.sizes) == 0, sizes=sizes)
    # Two choices differ by the same variance whether there are two of them or more.
    rows = np.eye(len(p.choices)) * math.sqrt(2) if len(p.choices) > 2 else np.array([[1.0], [-1.0]])
    table = {_key(choice): tuple(row.tolist()) for choice, row in zip(p.choices, rows, strict=True)}
    return _Axis(p.name, rows.shape[1], lambda value: table[_key(value)])


def _number(
    name: str,
    low: float,
    high: float,
    *,
    log: bool,
    absent: bool | None = None,
    sizes: Mapping[_Key, float] | None = None,
) -> _Axis:
    """A number's columns; `sizes` of choices, else the value itself is the size."""
    absent = low == 0 if absent is None else absent
    scale: Callable[[float], float] = math.log if log else float
    bottom, span = scale(low), scale(high) - scale(low)

    def columns(value: Any) -> tuple[float, ...]:
        size = float(value) if sizes is None else sizes[_key(value)]
        if absent and size == 0:
            return (-1.0, 0.0, 0.0)
        z = 2 * (scale(size) - bottom) / span - 1 if span else 0.0
        square = z * z - 1 / 3
        return (1.0, z, square) if absent else (z, square)

    return _Axis(name, 2 if absent else 1, columns)


def _key(value: Any) -> _Key:
    """Tells True from 1."""
    return isinstance(value, bool), value


@dataclass(frozen=True)
class _Fit:
    """One setting of the grid.

    Attributes:
        pairs: variance of the pairs' weights as a share of that of single ones.
        ridge: variance of the noise as a share of that of single weights.
        variance: of single weights, with scores scaled to unit deviation.
    """

    evidence: float
    pairs: float
    ridge: float
    variance: float


class Regression:
    """y = intercept of its rung + w·x + noise, with w ~ N(0, v) for single columns, N(0, v·r) for pairs.

    The intercepts have a flat prior: data and columns are projected on the complement of the rungs'
    indicators (restricted likelihood, Patterson and Thompson 1971), so that scores of different rungs are
    never compared as such. Of v, r and the noise, v has its best value in closed form, the others come from a
    grid by evidence (MacKay 1992).

    Args:
        single: (n, d) columns.
        pairs: (n, e) columns.
        scores: (n,), finite.
        rungs: (n,) labels.
    """

    def __init__(self, single: _Array, pairs: _Array, scores: _Array, rungs: Sequence[int]) -> None:
        self._basis = _complement(rungs)
        self._single, self._pairs = self._basis @ single, self._basis @ pairs
        spread = float(np.std(self._basis @ scores)) if len(self._basis) else 0.0
        self._scale = spread or 1.0
        self._target = self._basis @ scores / self._scale
        self._kernels = self._single @ self._single.T, self._pairs @ self._pairs.T
        self.fit = max((f for r in _PAIRS for f in self._fits(r)), key=lambda f: f.evidence)

    def _fits(self, pairs: float) -> list[_Fit]:
        m = len(self._target)
        if m == 0:
            return [_Fit(0.0, pairs, 1.0, 1.0)]
        values, vectors = np.linalg.eigh(self._kernels[0] + pairs * self._kernels[1])
        values, mean = np.maximum(values, 0.0), float(np.mean(np.maximum(values, 0.0))) or 1.0
        seen = (vectors.T @ self._target) ** 2
        fits = []
        for ridge in _NOISE * mean:
            # A weak prior keeps the variance above 0 for constant scores.
            variance = (float(np.sum(seen / (values + ridge))) + 1e-6) / m
            evidence = -0.5 * (float(np.sum(np.log(values + ridge))) + m * np.log(variance))
            fits.append(_Fit(evidence, pairs, float(ridge), variance))
        return fits

    def draw(self, rng: np.random.Generator) -> tuple[_Array, _Array]:
        """Weights of single columns, (d,), and of pairs, (e,), from the posterior.

        A draw from the prior is corrected by the data (Matheron's rule): exact, and linear in the number of
        columns.
        """
        f = self.fit
        ratios = f.pairs
        single = rng.normal(0.0, np.sqrt(f.variance), self._single.shape[1])
        pairs = rng.normal(0.0, np.sqrt(f.variance * ratios), self._pairs.shape[1])
        noise = rng.normal(0.0, np.sqrt(f.variance * f.ridge), len(self._target))
        gram = self._kernels[0] + ratios * self._kernels[1] + f.ridge * np.eye(len(self._target))
        rest = self._target - self._single @ single - self._pairs @ pairs - noise
        answer = np.linalg.solve(gram, rest)
        single = single + self._single.T @ answer
        pairs = pairs + ratios * (self._pairs.T @ answer)
        return single * self._scale, pairs * self._scale

    def mean(self) -> tuple[_Array, _Array]:
        """The posterior mean of the weights, as `draw` gives them."""
        f = self.fit
        gram = self._kernels[0] + f.pairs * self._kernels[1] + f.ridge * np.eye(len(self._target))
        answer = np.linalg.solve(gram, self._target) * self._scale
        return self._single.T @ answer, f.pairs * (self._pairs.T @ answer)


def _complement(rungs: Sequence[int]) -> _Array:
    """Orthonormal rows (n − labels, n) that are orthogonal to the indicator of each label.

    Within a label these are the rows of the Helmert matrix without its first.
    """
    labels = np.asarray(rungs)
    blocks = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        k = len(members)
        block = np.zeros((k - 1, len(labels)))
        for i in range(1, k):
            block[i - 1, members[:i]] = 1 / np.sqrt(i * (i + 1))
            block[i - 1, members[i]] = -i / np.sqrt(i * (i + 1))
        blocks.append(block)
    return np.vstack(blocks) if blocks else np.zeros((0, 0))

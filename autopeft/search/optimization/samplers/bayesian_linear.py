"""Bayesian linear regression with a free intercept for each rung, and draws from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Regression"]

_Array = NDArray[np.float64]

# Variance of the pairs' weights as a share of that of single ones; noise variance as a share of the mean
# variance of the signal.
_PAIRS = (0.0, 0.03, 0.1, 0.3, 1.0)
_NOISE = np.geomspace(1e-3, 1e2, 26)


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

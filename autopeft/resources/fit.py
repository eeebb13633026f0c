"""A cost as a sum of features times coefficients that are not negative, fitted to measurements.

Each measurement weighs alike, whatever its size: the fit is of relative deviations. Coefficients of what
entries do are shared by all methods that act in one way, so that the noise of single measurements averages
out; each method has a factor of its own, drawn towards 1 as far as its measurements leave it open. A method
that was never measured has the factor 1.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autopeft.resources.features import Features

__all__ = ["WITHIN", "CostModel", "Deviations", "LatencyModel", "fit", "fit_latency"]

WITHIN = 0.2
"""A prediction is a good one where it is off by this share at most."""
_RIDGE = 0.01
_ROUNDS = 12
# Standard deviations of a measurement, as a share of it, and of the logarithm-like spread of methods'
# factors.
_NOISE, _SPREAD = 0.01, 0.7
_MOST = 20.0
# Beyond this share a deviation counts less: what disturbs a measurement may have made it much larger.
_USUAL = 0.08
# Of what an entry takes in a training step the forward is a third to a half: it has one product where the
# backward has one or two. Measurements may move it.
_FORWARD, _FORWARD_SPREAD = 0.4, 0.1


@dataclass(frozen=True)
class Deviations:
    """How far predictions of measurements that were left out of the fit were off, as shares.

    Attributes:
        median, worst: of the absolute deviations.
        share: of the measurements that were predicted within `WITHIN`.
    """

    median: float
    worst: float
    share: float

    @classmethod
    def of(cls, predicted: Sequence[float], measured: Sequence[float]) -> Deviations:
        """Of predictions beside what was measured."""
        off = [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True)]
        return cls(statistics.median(off), max(off), sum(d <= WITHIN for d in off) / len(off))


@dataclass(frozen=True)
class CostModel:
    """A fitted cost.

    Attributes:
        coefficients: of the backbone's features, and of `way:what`.
        factors: of methods, as `way/method`.
        error: found by leaving each measurement out in turn; `None` where there are too few.
    """

    coefficients: Mapping[str, float]
    factors: Mapping[str, float] = field(default_factory=dict)
    error: Deviations | None = None

    def __call__(self, features: Features) -> float:
        """The cost that these features have."""
        return sum(value * self._of(name) for name, value in features.items())

    def _of(self, name: str) -> float:
        owner, shared = _parts(name)
        return self.coefficients.get(shared, 0.0) * self.factors.get(owner, 1.0)


def _parts(name: str) -> tuple[str, str]:
    """`way/method` and the name of the shared coefficient, of a feature's name."""
    owner, colon, what = name.partition(":")
    return (owner, f"{owner.partition('/')[0]}:{what}") if colon else ("", name)


def fit(rows: Sequence[Features], costs: Sequence[float], *, check: bool = True) -> CostModel:
    """Fit measured costs.

    Args:
        rows: features of each measurement.
        costs: what was measured, positive.
        check: whether to find the error by leaving out measurements. Those that alone show a feature are not
            left out: nothing could be said of them.
    """
    model = _Fit(rows, costs).model()
    alone = _only_seen_once(rows)
    left_out = [i for i, row in enumerate(rows) if not alone & row.keys()] if check else []
    if len(left_out) < 3:
        return model
    predicted = []
    for i in left_out:
        others = [j for j in range(len(rows)) if j != i]
        predicted.append(_Fit([rows[j] for j in others], [costs[j] for j in others]).model()(rows[i]))
    error = Deviations.of(predicted, [costs[i] for i in left_out])
    return CostModel(model.coefficients, model.factors, error)


def _only_seen_once(rows: Iterable[Features]) -> set[str]:
    seen: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            seen[name] = seen.get(name, 0) + bool(value)
    return {name for name, count in seen.items() if count == 1}


class _Fit:
    """Shared coefficients and factors, each found in turn with the other held."""

    def __init__(self, rows: Sequence[Features], costs: Sequence[float]) -> None:
        names = sorted({name for row in rows for name, value in row.items() if value})
        # Shares of the measured cost, if a coefficient were 1.
        raw = np.array([[row.get(name, 0.0) for name in names] for row in rows])
        self.relative: NDArray[np.float64] = raw / np.asarray(costs, dtype=float)[:, None]
        parts = [_parts(name) for name in names]
        self.shared = sorted({shared for _, shared in parts})
        self.owners = sorted({owner for owner, _ in parts} - {""})
        self.to_shared = np.array([self.shared.index(shared) for _, shared in parts])
        self.to_owner = np.array([self.owners.index(owner) if owner else -1 for owner, _ in parts])

    def model(self) -> CostModel:
        factors = np.ones(len(self.owners))
        coefficients = self._coefficients(factors)
        for _ in range(_ROUNDS):
            factors = self._factors(coefficients, factors)
            coefficients = self._coefficients(factors)
        return CostModel(
            dict(zip(self.shared, map(float, coefficients), strict=True)),
            dict(zip(self.owners, map(float, factors), strict=True)),
        )

    def _scaled(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        own = np.append(factors, 1.0)[self.to_owner]  # −1, the last, is the backbone's
        return np.asarray(self.relative * own)

    def _coefficients(self, factors: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = self._scaled(factors)
        matrix = np.zeros((len(scaled), len(self.shared)))
        np.add.at(matrix.T, self.to_shared, scaled.T)
        # Of like size, so that the ridge treats features of any unit alike.
        scale = np.abs(matrix).max(axis=0)
        ridge = _RIDGE * np.diag([float(":" in name) for name in self.shared])
        target = np.concatenate([np.ones(len(matrix)), np.zeros(len(scale))])
        found, _ = nnls(np.vstack([matrix / scale, ridge]), target)
        return np.asarray(found / scale)

    def _factors(self, coefficients: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """Each method's factor by least squares with a prior, the others as they were."""
        parts = self.relative * coefficients[self.to_shared]
        factors, prior = before.copy(), (_NOISE / _SPREAD) ** 2
        for i in range(len(factors)):
            own = parts[:, self.to_owner == i].sum(axis=1)
            rest = 1 - (parts * np.append(factors, 1.0)[self.to_owner]).sum(axis=1) + own * factors[i]
            factors[i] = np.clip((own @ rest + prior) / (own @ own + prior), 0.0, _MOST)
        return np.asarray(factors)


@dataclass(frozen=True)
class LatencyModel:
    """The time of a forward of the whole model.

    What entries add is too small a part of it to be measured apart, so it is taken from the training step.

    Attributes:
        bare: seconds of the backbone alone.
        longer: seconds more where prompts double the texts.
        forward: share of an entry's time in a training step that is its forward.
    """

    bare: float
    longer: float
    forward: float
    error: Deviations | None = None

    def __call__(self, own: float, longer: float) -> float:
        """Seconds with entries that take `own` seconds in a step and make texts longer by this share."""
        return self.bare + longer * self.longer + own * self.forward


def fit_latency(own: Sequence[float], longer: Sequence[float], measured: Sequence[float]) -> LatencyModel:
    """Fit measured forwards; deviations are those of the fit."""
    costs = np.asarray(measured, dtype=float)
    matrix = np.column_stack([np.ones(len(costs)), longer, own]) / costs[:, None]
    prior = np.array([[0.0, 0.0, _NOISE / _FORWARD_SPREAD]])
    weights, found = np.ones(len(costs)), np.zeros(3)
    for _ in range(_ROUNDS):
        rows = np.vstack([matrix * weights[:, None], prior])
        found, _ = nnls(rows, np.concatenate([weights, prior[0, 2:] * _FORWARD]))
        off = np.abs(matrix @ found - 1)
        weights = np.sqrt(np.minimum(1.0, _USUAL / np.maximum(off, _USUAL)))
    bare, more, forward = map(float, found)
    model = LatencyModel(bare, more, forward)
    predicted = [model(o, x) for o, x in zip(own, longer, strict=True)]
    return LatencyModel(bare, more, forward, Deviations.of(predicted, list(measured)))

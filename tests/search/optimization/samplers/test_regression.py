from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import BayesianRidge

from autopeft.search.optimization.samplers.regression import Regression, _complement


def data(n: int, *, noise: float = 0.1, pair: float = 0.0, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    x = rng.choice([-1.0, 1.0], (n, 5))
    z = x[:, [0, 1]] * x[:, [2, 3]]
    w = np.array([0.5, -0.3, 0.2, 0.0, 0.1])
    return x, z, w, x @ w + pair * z[:, 0] + rng.normal(0, noise, n)


def test_it_finds_weights_and_pairs() -> None:
    x, z, w, y = data(120, pair=0.4)
    single, pairs = Regression(x, z, y, [0] * 120).mean()
    assert single == pytest.approx(w, abs=0.05)
    assert pairs == pytest.approx([0.4, 0.0], abs=0.05)


def test_pairs_are_believed_only_where_the_data_ask_for_them() -> None:
    rng = np.random.default_rng(3)
    x, _, _, y = data(60)
    many = rng.choice([-1.0, 1.0], (60, 40))
    without = Regression(x, many, y, [0] * 60)
    x, z, _, y = data(60, pair=0.6)
    assert without.fit.pairs < Regression(x, z, y, [0] * 60).fit.pairs


def test_scores_of_other_rungs_teach_without_being_compared() -> None:
    x, z, w, y = data(120)
    rungs = [30] * 60 + [100] * 60
    there = np.array([r == 30 for r in rungs])
    # The early rung holds other recipes, and its scores lie lower.
    chosen = np.concatenate([np.flatnonzero(x[:, 0] < 0)[:45], np.flatnonzero(x[:, 0] > 0)[:15]])
    order = np.concatenate([chosen, np.setdiff1d(np.arange(120), chosen)])
    x, z, y = x[order], z[order], y[order]
    plain, shifted = (Regression(x, z, y - fall * there, rungs).mean()[0] for fall in (0.0, 5.0))
    assert shifted == pytest.approx(plain, abs=1e-9)
    assert shifted == pytest.approx(w, abs=0.05)
    merged = Regression(x, z, y - 5.0 * there, [0] * 120).mean()[0]
    assert abs(merged[0] - w[0]) > 0.5, "without intercepts the rungs would be compared"


def test_the_noise_is_that_of_the_data() -> None:
    for noise in (0.05, 0.5):
        x, z, _, y = data(200, noise=noise)
        r = Regression(x, z, y, [0] * 200)
        assert np.sqrt(r.fit.variance * r.fit.ridge) * r._scale == pytest.approx(noise, rel=0.25)


def test_draws_have_the_mean_and_covariance_of_the_posterior() -> None:
    x, z, _, y = data(20, noise=0.4, pair=0.3)
    r = Regression(x, z, y, [0] * 20)
    rng = np.random.default_rng(0)
    drawn = np.array([np.concatenate(r.draw(rng)) for _ in range(6000)])
    # The textbook posterior in the space of weights: (XᵀX/σ² + Λ⁻¹)⁻¹, on centred data.
    f, columns = r.fit, np.hstack([x, z]) - np.hstack([x, z]).mean(axis=0)
    prior = np.concatenate([np.full(5, 1.0), np.full(2, f.pairs)]) * f.variance
    noise = f.variance * f.ridge
    covariance = np.linalg.inv(columns.T @ columns / noise + np.diag(1 / prior)) * r._scale**2
    mean = covariance @ columns.T @ (y - y.mean()) / (noise * r._scale**2)
    assert np.concatenate(r.mean()) == pytest.approx(mean)
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=4 * np.sqrt(covariance.max() / 6000))
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.1 * covariance.max())


def test_it_agrees_with_scikit_learn_where_both_apply() -> None:
    x, _, _, y = data(80, noise=0.2)
    single, _ = Regression(x, np.zeros((80, 0)), y, [0] * 80).mean()
    assert single == pytest.approx(BayesianRidge().fit(x, y).coef_, abs=0.01)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_the_projection_is_orthonormal_and_forgets_intercepts(rungs: list[int]) -> None:
    basis = _complement(rungs)
    assert basis.shape == (len(rungs) - len(set(rungs)), len(rungs))
    assert basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-9)
    for label in set(rungs):
        assert basis @ (np.array(rungs) == label) == pytest.approx(np.zeros(len(basis)), abs=1e-9)


@pytest.mark.parametrize("scores", [[0.7], [0.7, 0.7], [0.7, 0.7, 0.7, 0.7]])
def test_little_data_and_constant_scores_give_finite_weights(scores: list[float]) -> None:
    n = len(scores)
    x, z, _, _ = data(n)
    for rungs in ([0] * n, list(range(n))):
        weights = Regression(x, z, np.array(scores), rungs).draw(np.random.default_rng(0))
        assert all(np.all(np.isfinite(w)) for w in weights)


def test_no_columns() -> None:
    none = np.zeros((3, 0))
    single, pairs = Regression(none, none, np.array([0.1, 0.2, 0.3]), [0, 0, 0]).draw(
        np.random.default_rng(0)
    )
    assert single.shape == pairs.shape == (0,)

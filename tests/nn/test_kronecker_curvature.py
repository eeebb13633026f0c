from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from autopeft.nn import KroneckerCurvature, fit_precision, log_evidence, softmax_root


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _filled(small: Tensor, large: Tensor, rank: int, *, parts: int = 1, rows: int = 1) -> KroneckerCurvature:
    """The curvature of vectors (many, small) and (many, large), the latter in so many parts."""
    curvature = KroneckerCurvature(small.shape[1], large.shape[1], rank)
    curvature.begin()
    curvature.add_small(small)
    for part in large.chunk(parts):
        curvature.add_large(part)
    curvature.settle(rows)
    return curvature


def _factors(curvature: KroneckerCurvature) -> tuple[Tensor, Tensor]:
    q, u = curvature.small_basis, curvature.large_basis
    return q @ curvature.small_values.diag() @ q.T, u @ curvature.large_values.diag() @ u.T


@pytest.mark.parametrize("many", [4, 30])
@pytest.mark.parametrize("parts", [1, 3])
def test_full_rank_factors_are_the_sums_of_outer_products(many: int, parts: int) -> None:
    small, large = _randn(9, 3), _randn(many, 7, seed=1)
    s, l = _factors(_filled(small, large, rank=20, parts=parts, rows=4))  # noqa: E741
    torch.testing.assert_close(s, small.T @ small / 4, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(l, large.T @ large, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("many", [5, 40])
def test_a_low_rank_factor_is_the_best_of_its_rank(many: int) -> None:
    large = _randn(many, 8)
    curvature = _filled(_randn(2, 2), large, rank=3)
    values, vectors = torch.linalg.eigh(large.T @ large)
    best = vectors[:, -3:] @ values[-3:].diag() @ vectors[:, -3:].T
    torch.testing.assert_close(_factors(curvature)[1], best, atol=1e-4, rtol=1e-4)
    assert curvature.large_basis.shape == (8, 3)


def test_the_svd_is_incremental() -> None:
    """What was cut off from the first part is lost, and what has the rank is kept over all parts."""
    axes = torch.eye(6)
    kept = _filled(_randn(2, 2), torch.cat([3 * axes[:2], 2 * axes[:2], axes[:2]]), rank=2, parts=3)
    torch.testing.assert_close(_factors(kept)[1], 14 * torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0])))
    lost = _filled(
        _randn(2, 2), torch.stack([3 * axes[0], 2 * axes[1], 5 * axes[2], 2 * axes[1]]), 1, parts=4
    )
    torch.testing.assert_close(_factors(lost)[1], 25 * torch.outer(axes[2], axes[2]))


def test_fewer_vectors_than_the_rank_leave_an_orthonormal_basis() -> None:
    curvature = _filled(_randn(3, 3), _randn(2, 9), rank=5)
    basis = curvature.large_basis
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
    assert (curvature.eigenvalues() > 1e-4).sum() == 6


@pytest.mark.parametrize("rank", [2, 9])
@pytest.mark.parametrize("p", [0.3, 3.0])
def test_covariance_is_the_dense_one(rank: int, p: float) -> None:
    curvature = _filled(_randn(5, 3), _randn(20, 6, seed=1), rank)
    dense = torch.kron(*(f.double() for f in _factors(curvature))) + p * torch.eye(18)
    jacobians = _randn(4, 2, 3, 6, seed=2)
    flat = jacobians.flatten(2).double()
    expected = flat @ torch.linalg.inv(dense) @ flat.mT
    got = curvature.covariance(jacobians, torch.tensor(p))
    torch.testing.assert_close(got.double(), expected, atol=1e-4 / p, rtol=1e-4)


def test_the_root_is_that_of_the_hessian_of_cross_entropy() -> None:
    logits = 3 * _randn(5, 4)
    root = softmax_root(logits)
    for row in range(5):
        hessian = torch.func.hessian(lambda f: F.cross_entropy(f, torch.tensor(1)))(logits[row])
        torch.testing.assert_close(root[row] @ root[row].T, hessian, atol=1e-6, rtol=1e-5)


def test_evidence_is_laplaces_integral() -> None:
    """log p(D|θ) + log N(θ; 0, 1/p) + ½·d·log 2π − ½·log det(H + p·I), over d parameters."""
    curvature = _filled(_randn(5, 2), _randn(9, 4, seed=1), rank=3)
    theta, p = _randn(8, seed=2).double(), 0.7
    h = torch.kron(*(f.double() for f in _factors(curvature)))
    prior = 0.5 * 8 * math.log(p / (2 * math.pi)) - 0.5 * p * float(theta @ theta)
    volume = 0.5 * 8 * math.log(2 * math.pi) - 0.5 * float(torch.logdet(h + p * torch.eye(8)))
    got = log_evidence(-3.0, float(theta @ theta), curvature.eigenvalues().double(), p)
    assert float(got) == pytest.approx(-3.0 + prior + volume, rel=1e-5)


@pytest.mark.parametrize(("scale", "norm"), [(1.0, 2.5), (1e-4, 64.0), (1e-4, 1e-3), (1e3, 2.5), (1e3, 1e4)])
def test_the_precision_is_where_the_evidence_is_largest(scale: float, norm: float) -> None:
    curvatures = [_filled(_randn(5, 2, seed=i), scale * _randn(9, 4, seed=9 + i), rank=3) for i in range(2)]
    h = torch.cat([c.eigenvalues().flatten() for c in curvatures]).double()
    p = fit_precision(norm, curvatures)
    assert p is not None
    grid = [p * 10 ** (k / 1000) for k in range(-6000, 6001)]
    best = max(grid, key=lambda q: float(log_evidence(-3.0, norm, h, q)))
    assert p == pytest.approx(best, rel=0.01)


def test_without_curvature_there_is_no_best_precision() -> None:
    assert fit_precision(2.5, [KroneckerCurvature(2, 4, 3)]) is None


def test_a_curvature_stays_in_fp32_and_knows_its_size() -> None:
    curvature = _filled(_randn(5, 2), _randn(9, 4, seed=1), rank=3)
    before = {k: v.clone() for k, v in curvature.state_dict().items()}
    half = torch.nn.Sequential(curvature).bfloat16()
    assert all(torch.equal(v, before[k]) for k, v in curvature.state_dict().items())
    assert KroneckerCurvature.size(2, 4, 3) == sum(b.numel() for b in half.buffers())

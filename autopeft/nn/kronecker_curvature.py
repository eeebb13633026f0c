"""K-FAC: the curvature of a linear map's weight as a Kronecker product, and what a Laplace approximation asks
of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["KroneckerCurvature", "fit_precision", "log_evidence", "softmax_root"]


class KroneckerCurvature(nn.Module):
    """H ≈ S ⊗ L over a weight with a `small` and a `large` side, S exact and L of low `rank`.

    S = Q·diag(γ)·Qᵀ and L = U·diag(λ)·Uᵀ are held in their eigenbases: buffers `small_basis` Q (small ×
    small), `small_values` γ, `large_basis` U (large × n) and `large_values` λ with n = min(rank, large), all
    zero until settled. `add_small` and `add_large` add vectors after `begin`, whose outer products S and L
    sum up. L's rank is kept down by an incremental SVD (Yang et al. 2024, arXiv:2308.13111): R ← the first n
    columns of U·Σ of [R, new vectors], L ≈ R·Rᵀ, so that nothing is large × large where few come at once.
    """

    small_basis: Tensor
    small_values: Tensor
    large_basis: Tensor
    large_values: Tensor

    def __init__(self, small: int, large: int, rank: int) -> None:
        super().__init__()
        n = min(rank, large)
        self.register_buffer("small_basis", torch.zeros(small, small))
        self.register_buffer("small_values", torch.zeros(small))
        self.register_buffer("large_basis", torch.zeros(large, n))
        self.register_buffer("large_values", torch.zeros(n))
        self._small = self._root = torch.empty(0)

    @staticmethod
    def size(small: int, large: int, rank: int) -> int:
        """Numbers in its buffers: small² + small + (large + 1)·n."""
        return small * small + small + (large + 1) * min(rank, large)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KroneckerCurvature:
        """Go along to another device, but stay in fp32: decompositions know no half precision."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, moved in self._buffers.items():
            before = kept[name]
            if moved is not None and before is not None and moved.dtype != before.dtype:
                self._buffers[name] = before.to(moved.device)
        return self

    def begin(self) -> None:
        """Start with both factors zero."""
        self._small = torch.zeros_like(self.small_basis)
        self._root = torch.zeros_like(self.large_basis)

    def add_small(self, vectors: Tensor) -> None:
        """Add outer products of vectors (many, small) to S."""
        rows = vectors.to(self._small.dtype)
        self._small += rows.T @ rows

    def add_large(self, vectors: Tensor) -> None:
        """Add outer products of vectors (many, large) to L."""
        columns = torch.cat([self._root, vectors.to(self._root.dtype).T], dim=1)
        n = self._root.shape[1]
        # Both give U·Σ without dividing by a singular value; the smaller Gram matrix has the eigenvectors.
        if columns.shape[1] <= columns.shape[0]:
            _, right = torch.linalg.eigh(columns.T @ columns)
            self._root = columns @ right[:, -n:]
        else:
            values, left = torch.linalg.eigh(columns @ columns.T)
            self._root = left[:, -n:] * values[-n:].clamp(min=0).sqrt()

    def settle(self, rows: int) -> None:
        """Take what was added as the curvature, S divided by `rows`."""
        values, vectors = torch.linalg.eigh(self._small / rows)
        self.small_basis.copy_(vectors)
        self.small_values.copy_(values.clamp(min=0))
        # An SVD, whose basis is orthonormal even where the root has zero columns.
        basis, singular, _ = torch.linalg.svd(self._root, full_matrices=False)
        self.large_basis.copy_(basis)
        self.large_values.copy_(singular.square())
        self._small = self._root = torch.empty(0)

    def eigenvalues(self) -> Tensor:
        """γᵢ·λⱼ (small, n), the eigenvalues of H that are not zero by construction."""
        return self.small_values.clamp(min=0)[:, None] * self.large_values.clamp(min=0)

    def covariance(self, jacobians: Tensor, precision: Tensor) -> Tensor:
        """J·(H + p·I)⁻¹·Jᵀ (rows, outputs, outputs) for J (rows, outputs, small, large).

        In the eigenbasis: 1/(p + γᵢ·λⱼ) within the span of U, 1/p outside it.
        """
        turned = self.small_basis.T @ jacobians.to(self.small_basis.dtype)
        inside = turned @ self.large_basis
        outside = (turned - inside @ self.large_basis.T).flatten(2)
        inside = (inside / (precision + self.eigenvalues()).sqrt()).flatten(2)
        return inside @ inside.mT + outside @ outside.mT / precision


def softmax_root(logits: Tensor) -> Tensor:
    """R (rows, classes, classes) with R·Rᵀ = diag(π) − π·πᵀ, the Hessian of cross-entropy, π = softmax.

    Column c is √π_c·(e_c − π).
    """
    p = logits.softmax(dim=-1)
    root = p.sqrt()
    return torch.diag_embed(root) - p[:, :, None] * root[:, None, :]


def log_evidence(
    likelihood: float, norm: float | Tensor, eigenvalues: Tensor, precision: float | Tensor
) -> Tensor:
    """Laplace's log marginal likelihood log p(D|θ) − ½·p·‖θ‖² − ½·Σ log(1 + h/p), where the mode θ has the
    squared `norm` under the prior N(0, 1/p) and h are the eigenvalues of the curvature."""
    return likelihood - 0.5 * precision * norm - 0.5 * torch.log1p(eigenvalues / precision).sum()


def fit_precision(norm: float, curvatures: Sequence[KroneckerCurvature]) -> float | None:
    """The prior precision p of largest `log_evidence`; `None` where the curvature is zero everywhere, so that
    every smaller p is better.

    There p·‖θ‖² = Σ h/(h + p). The left side rises and the right side falls, so that bisection of log p finds
    the only solution; it lies between that of the largest h alone and the number of h by ‖θ‖².
    """
    h = torch.cat([c.eigenvalues().flatten() for c in curvatures]).cpu().double()
    h = h[h > 0]
    if not len(h) or not norm > 0:
        return None
    most = float(h.max())
    low = math.log(2 * (most / norm) / (most + math.sqrt(most * most + 4 * most / norm)))
    high = math.log(len(h) / norm)
    for _ in range(200):
        p = math.exp((low + high) / 2)
        if p * norm < float((h / (h + p)).sum()):
            low = math.log(p)
        else:
            high = math.log(p)
    return math.exp((low + high) / 2)

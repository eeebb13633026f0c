"""Sums of Kronecker products Σᵢ Aᵢ ⊗ Bᵢ: the matrices of PHM (parameterized hypercomplex) layers.

Zhang et al. 2021, arXiv:2102.08597; with low-rank Bᵢ: Karimi Mahabadi et al. 2021, arXiv:2106.04647.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.spec import Site

__all__ = ["LowRankKronecker", "kronecker_sum", "require_blocks"]


def kronecker_sum(left: Tensor, right: Tensor) -> Tensor:
    """Σᵢ leftᵢ ⊗ rightᵢ: (n, a, b) and (n, c, d) → (a·c, b·d)."""
    rows, columns = left.shape[1] * right.shape[1], left.shape[2] * right.shape[2]
    return torch.einsum("nab,ncd->acbd", left, right).reshape(rows, columns)


class LowRankKronecker(nn.Module):
    """Σᵢ Aᵢ ⊗ (lᵢ·rᵢ), (rows × columns), for rules Aᵢ (n × n) that several share and that are handed over.

    lᵢ (rows/n × rank) and rᵢ (rank × columns/n) are Glorot-uniform with `gain`; n divides rows and columns.
    """

    def __init__(self, n: int, rows: int, columns: int, rank: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(n, rows // n, rank))
        self.right = nn.Parameter(torch.empty(n, rank, columns // n))
        for i in range(n):
            nn.init.xavier_uniform_(self.left[i], gain)
            nn.init.xavier_uniform_(self.right[i], gain)

    @staticmethod
    def size(rows: int, columns: int, rank: int) -> int:
        """Parameters without the rules: rank·(rows + columns), whatever n."""
        return rank * (rows + columns)

    def matrix(self, rules: Tensor) -> Tensor:
        """The matrix for `rules` (n, n, n)."""
        return kronecker_sum(rules, self.left @ self.right)


def require_blocks(method: str, n: int, sites: Sequence[Site]) -> None:
    """Check that the widths of all sites can be cut into n blocks.

    Raises:
        MethodError: those of a site cannot; the message names the n that fit all sites.
    """
    misfit = next((s for s in sites if s.in_features % n or s.out_features % n), None)
    if misfit is None:
        return
    common = math.gcd(*(width for s in sites for width in (s.in_features, s.out_features)))
    fitting = ", ".join(str(d) for d in range(1, min(common, 128) + 1) if common % d == 0)
    raise MethodError(
        f"{method} with phm_dim={n} cuts widths into {n} equal blocks, but {misfit.path} is "
        f"{misfit.in_features} wide at its input and {misfit.out_features} at its output; at these sites "
        f"phm_dim may be {fitting}."
    )

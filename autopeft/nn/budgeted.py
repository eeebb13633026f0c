"""Probabilities of blocks whose expected size is a budget, the gates drawn from them, and the choice in the
end.

Hu et al. 2022, arXiv:2206.07382 (S³PET). Block i has a logit αᵢ and nᵢ parameters. One shift b for all blocks
keeps Σ nᵢ·pᵢ at the budget B, where pᵢ = σ((αᵢ − b)/β).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from autopeft.errors import BudgetError

__all__ = ["Jacobian", "binary_concrete", "budgeted_sigmoid", "chosen_within", "expected_gate", "shift_for"]

Jacobian = Literal["exact", "reference"]
_HALVINGS = 200  # float64 is exhausted before


def shift_for(logits: Tensor, sizes: Tensor, budget: float, temperature: float = 1.0) -> float:
    """b with Σ nᵢ·σ((αᵢ − b)/β) = B, by bisection: the sum falls as b rises.

    Args:
        logits, sizes: α and n, (blocks,).

    Raises:
        BudgetError: all blocks together have no more parameters than the budget, or there is none to spend.
    """
    total = float(sizes.sum())
    if not 0 < budget < total:
        raise BudgetError(
            f"Gates choose blocks with {budget:,.0f} parameters of those that there are, and all blocks "
            f"together have {total:,.0f}; give a budget above 0 and below that, or offer more or larger ones."
        )
    alpha, n = logits.detach().double(), sizes.double()
    # At the ends each block alone would be as probable as the whole budget, or less probable than its share.
    reach = 1.0 + temperature * 64.0
    low, high = float(alpha.min()) - reach, float(alpha.max()) + reach
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float((n * torch.sigmoid((alpha - middle) / temperature)).sum()) > budget:
            low = middle
        else:
            high = middle
        if high - low <= abs(middle) * 1e-15:
            break
    return (low + high) / 2


def budgeted_sigmoid(
    logits: Tensor,
    sizes: Tensor,
    budget: float,
    *,
    temperature: float = 1.0,
    jacobian: Jacobian = "exact",
) -> Tensor:
    """p of each block, (blocks,), with a gradient for the logits.

    Args:
        jacobian: `exact` is that of the constraint, Jᵢⱼ = sᵢ[i = j] − sᵢ·nⱼsⱼ/Σₖ nₖsₖ with s = p(1 − p)/β, so
            that nᵀJ = 0. `reference` is that of the authors' code, which takes b as constant and divides by
            the sum of p: Jᵢⱼ = sᵢ[i = j] − pᵢsⱼ/Σₖ pₖ. It takes no account of sizes.

    Raises:
        BudgetError: see `shift_for`.
    """
    shift = shift_for(logits, sizes, budget, temperature)
    if jacobian == "reference":
        p = torch.sigmoid((logits - shift) / temperature)
        return p / p.sum() * p.sum().detach()
    with torch.no_grad():
        p = torch.sigmoid((logits - shift) / temperature)
        weights = sizes * p * (1 - p)
        weights = weights / weights.sum().clamp(min=torch.finfo(p.dtype).tiny)
    # The shift follows the logits: db/dαⱼ = nⱼsⱼ/Σₖ nₖsₖ.
    moved = (weights * (logits - logits.detach())).sum()
    return torch.sigmoid((logits - shift - moved) / temperature)


def binary_concrete(p: Tensor, u: Tensor) -> Tensor:
    """Gates z = u·p/(u·p + (1 − u)(1 − p)) for uniform draws u: the binary concrete distribution at
    temperature 1, soft, with P(z > ½) = p (Maddison et al. 2017, arXiv:1611.00712)."""
    return u * p / (u * p + (1 - u) * (1 - p))


def expected_gate(p: float) -> float:
    """The mean of `binary_concrete` over u: c/(c − 1) − c·ln c/(c − 1)² with c = p/(1 − p). It lies nearer to
    ½ than p: soft gates let through more than the budget."""
    c = torch.tensor(p / (1 - p), dtype=torch.float64)
    if abs(float(c) - 1) < 1e-6:
        return 0.5
    return float(c / (c - 1) - c * torch.log(c) / (c - 1) ** 2)


def chosen_within(p: Tensor, sizes: Sequence[int], budget: int) -> list[int]:
    """The blocks that are kept: in the order of falling p each that still fits the budget; those that do not
    are left out, and smaller ones behind them may follow. Of equal ones the first comes first."""
    left, kept = budget, list[int]()
    for block in torch.argsort(p, descending=True, stable=True).tolist():
        if sizes[block] <= left:
            left -= sizes[block]
            kept.append(block)
    return sorted(kept)

"""What an entry's `merge:` makes of the values of several inputs, tensor by tensor.

θᵢ is a tensor of source i, wᵢ the source's weight, o the value at which the tensor does nothing: 1 where it
multiplies what the backbone yields ((IA)³'s factors, a norm's gain), 0 elsewhere. τᵢ = θᵢ − o.

| rule | the tensor becomes |
|---|---|
| `mean` | o + (1/N)·Στᵢ |
| `sum` | o + Σwᵢ·τᵢ |
| `ties` | o + the mean of wᵢ·τᵢ over the sources that agree, of each τᵢ its largest values alone |
| `dare` | o + Σwᵢ·mᵢ⊙τᵢ/p, each entry of mᵢ 1 with probability p and else 0 |
| `dare_ties` | the same as `ties`, of mᵢ⊙τᵢ/p |
| `svd` | the r largest singular triplets of Σwᵢ·sᵢ·Bᵢ·Aᵢ, as B = U·S/s and A = Vᵀ |

Sources: `mean` AdapterSoup, Chronopoulou et al. 2023, arXiv:2302.07027, eq. 1; `sum` Ilharco et al. 2023,
arXiv:2212.04089; `ties` Yadav et al. 2023, arXiv:2306.01708; `dare` Yu et al. 2024, arXiv:2311.03099.

p is `density`. A source agrees at an entry where its sign is that of the sum of all sources there. Of a
low-rank pair B·A each factor has the weight √|wᵢ|, and A the sign of wᵢ, so that wᵢ is the weight of the
product; the products of unlike sources come in beside. `mean` is of each factor by itself. These are the
rules of peft's `add_weighted_adapter` (`linear`, `ties`, `dare_linear`, `dare_ties`, `svd`).

`align` brings the hidden units of each source into the order of the first source's before that: the
permutation that makes the summed squared distance of the units' weights smallest, which is optimal transport
between equally many units of equal mass (Singh & Jaggi 2020, arXiv:1910.05653). The function of the source
stays as it was. MerA (He et al. 2023, arXiv:2308.15982) merges adapters so and trains the result on; its text
beyond the abstract could not be read and no code was found, so that squared distances, the choice of weights
and the mean are this package's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from autopeft.nn import generator_of
from autopeft.recipe.models import Merge

__all__ = ["Factor", "Units", "combine", "combine_pairs", "matching"]

Factor = Literal["A", "B"]
Units = Mapping[str, tuple[int, ...]]
"""Tensors at a site, by name, and the dimensions along which the hidden units lie in each."""


def combine(
    merge: Merge,
    key: str,
    states: Sequence[Tensor],
    neutral: Tensor | float = 0.0,
    *,
    factor: Factor | None = None,
) -> Tensor:
    """The tensor that the sources' tensors of one name become, by every rule but `svd`.

    Args:
        merge: the rule.
        key: the name, which settles what `dare` draws.
        states: the sources', of one shape.
        neutral: o.
        factor: which one of a low-rank pair it is, if any.
    """
    if merge.how == "mean":
        return states[0] if len(states) == 1 else torch.stack(list(states)).mean(0)
    taus = torch.stack(list(states)) - neutral
    weights = torch.tensor(merge.weights or [1.0] * len(states), dtype=taus.dtype)
    if factor is not None:
        weights = weights.abs().sqrt() * (weights.sign() if factor == "A" else 1.0)
    if merge.how == "ties":
        taus = torch.stack([_largest(tau, merge.density) for tau in taus])
    elif merge.how in ("dare", "dare_ties"):
        kept = torch.full_like(taus, merge.density).bernoulli(generator=generator_of(merge.seed, key))
        taus = taus * kept / merge.density
    weighted = taus * weights.view(-1, *[1] * (taus.ndim - 1))
    if merge.how in ("sum", "dare"):
        return neutral + weighted.sum(0)
    elected = torch.where(taus.sum(0) >= 0, 1.0, -1.0)
    agree = taus.sign() == elected
    return neutral + (weighted * agree).sum(0) / agree.sum(0).clamp(min=1)


def _largest(tau: Tensor, density: float) -> Tensor:
    """τ with zeros in the place of all but its ⌊density·size⌋ largest values."""
    flat = tau.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tau)


def combine_pairs(
    merge: Merge, pairs: Sequence[tuple[Tensor, Tensor, float]], rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) of the best s·B·A for the weighted sum of products (`svd`).

    Args:
        merge: the rule.
        pairs: A, B and s of each source, of any ranks.
        rank: that is left.
        scale: s.
    """
    weights = merge.weights or [1.0] * len(pairs)
    change = torch.stack([w * s * (b @ a) for w, (a, b, s) in zip(weights, pairs, strict=True)]).sum(0)
    u, values, vt = torch.linalg.svd(change, full_matrices=False)
    kept = min(rank, len(values))
    a, b = change.new_zeros(rank, vt.shape[1]), change.new_zeros(u.shape[0], rank)
    a[:kept], b[:, :kept] = vt[:kept], u[:, :kept] * values[:kept] / scale
    return a, b


def matching(
    anchor: Mapping[str, Tensor], state: Mapping[str, Tensor], units: Units, *, both: bool
) -> Tensor:
    """Which unit of `state` stands for each unit of `anchor`, (units,): the cheapest permutation.

    Args:
        anchor, state: tensors at one site, by name.
        units: where the units lie.
        both: compare the weights that leave a unit too, not those that go into it alone.
    """

    def rows(tensors: Mapping[str, Tensor]) -> Tensor:
        found = []
        for name, dimensions in units.items():
            if name in tensors and (both or dimensions[0] == 0):
                moved = tensors[name].movedim(dimensions[0], 0)
                found.append(moved.reshape(len(moved), -1))
        return torch.cat(found, 1).double()

    cost = torch.cdist(rows(anchor), rows(state)).square()
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])

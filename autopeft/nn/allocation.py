"""A budget of parameters over tensors by a ranking of entries: single ones, or a whole in their place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from autopeft.nn.top_entries import top_entries

__all__ = ["Allocation", "Whole", "allocate", "leading_entries"]


@dataclass(frozen=True)
class Whole:
    """What may stand in the place of a tensor's single entries.

    Attributes:
        cost: its parameters.
        worth: it takes their place from the cost / worth of them on; at least 1.
    """

    cost: int
    worth: float

    @property
    def threshold(self) -> int:
        """The smallest number of entries that it stands for."""
        return max(1, math.ceil(self.cost / self.worth))


class Allocation(NamedTuple):
    """What a budget was spent on.

    Attributes:
        entries: positions (n,) of the single entries in the concatenation of the flattened tensors.
        whole: for each tensor, whether the whole stands in the place of its entries.
        total: parameters, never more than the budget.
    """

    entries: Tensor
    whole: tuple[bool, ...]
    total: int


def leading_entries(scores: Iterable[Tensor], wholes: Sequence[Whole]) -> tuple[Tensor, Tensor]:
    """The entries of highest score that an allocation of any budget depends on: of each tensor as many as its
    threshold, since with these it is whole.

    Returns:
        Their positions (m,) in the concatenation of the flattened tensors and the number (m,) of the tensor
        that each lies in, the highest score first; of equal scores the first.

    Raises:
        ValueError: a score is not finite.
    """
    positions, numbers, values, start = [], [], [], 0
    for number, (score, whole) in enumerate(zip(scores, wholes, strict=True)):
        best = top_entries([score], whole.threshold)
        positions.append(best + start)
        numbers.append(torch.full_like(best, number))
        values.append(score.detach().flatten().float()[best])
        start += score.numel()
    order = torch.sort(torch.cat(values), descending=True, stable=True).indices
    return torch.cat(positions)[order], torch.cat(numbers)[order]


def allocate(positions: Tensor, numbers: Tensor, wholes: Sequence[Whole], budget: int) -> Allocation:
    """Spend a budget along a ranking as far as it reaches.

    With the first τ entries of the ranking a tensor that has c of them costs c, or what its whole costs where
    c reaches the threshold. The sum rises with τ, and of all τ that the budget suffices for the last is
    taken.

    Args:
        positions, numbers: see `leading_entries`.
        wholes: for each tensor.
        budget: parameters.
    """
    thresholds = torch.tensor([w.threshold for w in wholes], device=numbers.device)
    costs = torch.tensor([w.cost for w in wholes], device=numbers.device)
    order = torch.argsort(numbers, stable=True)
    counts = torch.bincount(numbers, minlength=len(wholes))
    starts = counts.cumsum(0) - counts
    seen = torch.empty_like(numbers)  # entries of the same tensor up to this one
    seen[order] = torch.arange(len(numbers), device=numbers.device) - starts[numbers[order]] + 1
    last = thresholds[numbers]
    steps = torch.where(seen < last, 1, torch.where(seen == last, costs[numbers] - last + 1, 0))
    totals = steps.cumsum(0)
    reach = int(torch.searchsorted(totals, torch.tensor(budget, device=totals.device), right=True))
    kept = numbers[:reach]
    whole = torch.bincount(kept, minlength=len(wholes)) >= thresholds
    total = int(totals[reach - 1]) if reach else 0
    return Allocation(positions[:reach][~whole[kept]], tuple(whole.cpu().tolist()), total)

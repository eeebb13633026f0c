"""Masked copies of one trainable matrix."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from autopeft.errors import MethodError
from autopeft.nn.seeds import generator_of

__all__ = ["MaskedCopies", "Masks"]


class Masks(NamedTuple):
    """The random masks of copies of one matrix, by all that they depend on: they are drawn, never saved.

    Attributes:
        seed, site, name: where they are drawn from: a seed, a site's path and the matrix's name there.
        rows, columns: the matrix's shape.
        copies: how many masks.
        density: the share of ones in each, rounded down to whole entries.
        pattern: `random` places, or two in each four entries of a row (`2:4`).
    """

    seed: int
    site: str
    name: str
    rows: int
    columns: int
    copies: int
    density: float
    pattern: Literal["random", "2:4"]

    def draw(self) -> Tensor:
        """The masks, bool (copies, rows, columns), each drawn independently of the others.

        Raises:
            MethodError: a mask would be empty, or the columns are not in fours.
        """
        # Whatever torch's default device is: the places must be known to count them.
        with torch.device("cpu"):
            return self._draw(generator_of(self.seed, self.site, self.name))

    def _draw(self, generator: torch.Generator) -> Tensor:
        total = self.rows * self.columns
        if self.pattern == "2:4":
            if self.columns % 4:
                raise MethodError(
                    f"Masks of pattern '2:4' keep two of each four columns, but {self.name} at {self.site} "
                    f"is ({self.rows} × {self.columns}); take a rank and sites whose widths are multiples of "
                    "4, or pattern 'random'."
                )
            order = torch.rand(self.copies, total // 4, 4, generator=generator).argsort(-1)
            return (order < 2).view(self.copies, self.rows, self.columns)
        kept = int(self.density * total)
        if not kept:
            raise MethodError(
                f"Masks of density={self.density} keep no entry of {self.name} at {self.site} "
                f"({self.rows} × {self.columns}); raise density or rank."
            )
        masks = torch.zeros(self.copies, total, dtype=torch.bool)
        for mask in masks:
            mask[torch.randperm(total, generator=generator)[:kept]] = True
        return masks.view(self.copies, self.rows, self.columns)

    def used(self) -> int:
        """How many entries are in at least one mask."""
        return _used(self)


@lru_cache(maxsize=1 << 16)
def _used(masks: Masks) -> int:
    return int(masks.draw().any(dim=0).sum())


class MaskedCopies(nn.Module):
    """Copies (copies, rows, columns) of one matrix, each under its mask.

    `values` (k,) holds the entries in at least one mask, in their order; the others do not exist. Which they
    are and which copy holds which, (copies, k), is drawn from the seed and not saved.
    """

    held: Tensor
    index: Tensor

    def __init__(self, masks: Masks, matrix: Tensor) -> None:
        super().__init__()
        drawn = masks.draw().flatten(1)
        index = drawn.any(dim=0).nonzero().flatten()
        self.register_buffer("held", drawn[:, index], persistent=False)
        self.register_buffer("index", index, persistent=False)
        self.values = nn.Parameter(matrix.flatten()[index])
        self.shape = matrix.shape

    def forward(self) -> Tensor:
        flat = self.values.new_zeros(len(self.held), self.shape.numel())
        copies = flat.scatter(1, self.index.expand(len(self.held), -1), self.values * self.held)
        return copies.view(-1, *self.shape)

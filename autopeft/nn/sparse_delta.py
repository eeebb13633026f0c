"""A trainable sparse change of backbone tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autopeft.errors import DataError
from autopeft.spec import TensorSpec

__all__ = ["SparseDelta"]


class SparseDelta(nn.Module):
    """θ = θ₀ + scatter(index, values) over several tensors at once.

    `values` (k,) starts at zero and is the only parameter; `index` (k,) holds sorted positions in the
    concatenation of the flattened tensors. Entries outside the index stay untouched exactly. A place that
    nothing is selected for has the position −1 and a value that does not act: all of them until `select` or
    `add` is called, or a selection is loaded.
    """

    index: Tensor

    def __init__(self, tensors: Sequence[TensorSpec], k: int) -> None:
        super().__init__()
        self.tensors = tuple(tensors)
        self.offsets: dict[str, tuple[int, int]] = {}
        start = 0
        for t in self.tensors:
            self.offsets[t.name] = (start, start + t.size)
            start += t.size
        self.total = start
        self.values = nn.Parameter(torch.zeros(k))
        self.register_buffer("index", torch.full((k,), -1, dtype=torch.int64))
        self._spans: tuple[Tensor, int, dict[str, tuple[int, int]]] | None = None

    def select(self, index: Tensor) -> None:
        """Choose the k entries: distinct positions in the concatenation, in any order.

        Raises:
            ValueError: another number of positions, positions outside the tensors, or a position twice.
        """
        if index.shape != self.index.shape:
            raise ValueError(f"select() needs {tuple(self.index.shape)} positions, got {tuple(index.shape)}.")
        self.index.copy_(self._sorted(index)[0])

    @torch.no_grad()
    def add(self, index: Tensor) -> None:
        """Choose further entries, whose values are zero; those of the chosen ones move along with them.

        Raises:
            ValueError: more positions than there are places left, positions outside the tensors, or one that
                is chosen already.
        """
        chosen = self.index >= 0
        whole = torch.cat([self.index[chosen], index.to(self.index.device)])
        free = len(self.index) - len(whole)
        if free < 0:
            raise ValueError(f"add() got {len(index)} positions, and {free + len(index)} places are left.")
        ordered, order = self._sorted(whole)
        values = torch.cat([self.values[chosen], self.values.new_zeros(len(index))])
        self.index.fill_(-1)[free:] = ordered
        self.values.zero_()[free:] = values[order]

    def _sorted(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in order, and where each was.

        Raises:
            ValueError: they lie outside the tensors, or one is there twice.
        """
        ordered, order = index.sort()
        if len(ordered) and (int(ordered[0]) < 0 or int(ordered[-1]) >= self.total):
            raise ValueError(f"Positions must lie in [0, {self.total}), got {ordered[0]} to {ordered[-1]}.")
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError("The same position was chosen twice.")
        return ordered, order

    def hold(self, k: int) -> None:
        """Have k places, for which nothing is selected."""
        self.values = nn.Parameter(self.values.new_zeros(k))
        self.index = self.index.new_full((k,), -1)

    def trim(self) -> None:
        """Drop the places that nothing is selected for."""
        chosen = self.index >= 0
        self.values = nn.Parameter(self.values.detach()[chosen])
        self.index = self.index[chosen]

    @property
    def missing(self) -> int:
        """Places that nothing is selected for."""
        return int((self.index < 0).sum())

    def selected(self) -> list[str]:
        """Names of the tensors in which at least one entry is selected, in order."""
        return [name for name, (lo, hi) in self.spans().items() if lo < hi]

    def spans(self) -> dict[str, tuple[int, int]]:
        """For each tensor the range of `index` (and `values`) that lies in it.

        Finding it waits for the device, so it is kept until `index` is replaced or written to, by whomever.

        Raises:
            DataError: `index` was written to by another than `select`, and is no selection.
        """
        index = self.index
        version = -1 if index.is_inference() else index._version
        if self._spans is not None and self._spans[0] is index and self._spans[1] == version:
            return self._spans[2]
        free = int((index == -1).sum())
        chosen = index[free:]
        inside = (chosen >= 0) & (chosen < self.total)
        if (
            bool((index[:free] != -1).any())
            or not bool(inside.all())
            or bool((chosen[1:] <= chosen[:-1]).any())
        ):
            raise DataError(
                f"The {len(index):,} positions of a sparse delta must rise and lie in [0, {self.total:,}), "
                "but they do not; the file that they were loaded from is damaged."
            )
        edges = torch.tensor([self.offsets[t.name][0] for t in self.tensors] + [self.total])
        cuts = torch.searchsorted(index, edges.to(index.device)).tolist()
        spans = {t.name: (cuts[i], cuts[i + 1]) for i, t in enumerate(self.tensors)}
        self._spans = (index, version, spans)
        return spans

    def apply_to(self, name: str, current: Tensor) -> Tensor:
        """`current` with this tensor's selected values added: a new tensor, differentiable in `values`.

        Where nothing of this tensor is selected, `current` itself.
        """
        here, places = self.within(name)
        if not len(places):
            return current
        flat = current.reshape(-1).index_add(0, places, self.values[here].to(current.dtype))
        return flat.view(current.shape)

    def within(self, name: str) -> tuple[slice, Tensor]:
        """Which of the values lie in a tensor, and their positions in it, flattened."""
        lo, hi = self.spans()[name]
        return slice(lo, hi), self.index[lo:hi] - self.offsets[name][0]

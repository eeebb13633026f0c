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
    concatenation of the flattened tensors. Entries outside the index stay untouched exactly. Places that are
    free have the index −1 and come first: all of them, until `select` or `extend` is called or a selection is
    loaded.
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
        ordered = index.sort().values
        if len(ordered) and (int(ordered[0]) < 0 or int(ordered[-1]) >= self.total):
            raise ValueError(f"Positions must lie in [0, {self.total}), got {ordered[0]} to {ordered[-1]}.")
        if bool((ordered[1:] == ordered[:-1]).any()):
            raise ValueError("select() got the same position twice.")
        self.index.copy_(ordered)

    @property
    def held(self) -> Tensor:
        """The positions that are chosen, sorted."""
        return self.index[self.index >= 0]

    @property
    def missing(self) -> int:
        """Places that are free."""
        return int((self.index < 0).sum())

    def trim(self) -> None:
        """Drop the places that are free."""
        self.hold(len(self.held))

    @torch.no_grad()
    def extend(self, index: Tensor) -> None:
        """Choose these positions too, in any order. The values of what is chosen stay, new ones are zero.

        Raises:
            ValueError: there are more positions than places, or some lie outside the tensors.
        """
        before = self.held
        union = torch.cat([before, index.to(before)]).unique()
        free = len(self.index) - len(union)
        if free < 0 or (len(union) and not 0 <= int(union[0]) <= int(union[-1]) < self.total):
            raise ValueError(
                f"extend() has {len(self.index)} places and positions in [0, {self.total}), but got "
                f"{len(union)} different ones in all."
            )
        values = torch.zeros_like(self.values)
        values[free + torch.searchsorted(union, before)] = self.values[len(self.index) - len(before) :]
        self.index.fill_(-1)
        self.index[free:] = union
        self.values.copy_(values)

    def hold(self, count: int) -> None:
        """Have so many places; where there are fewer than before, the last ones stay."""
        kept = min(count, len(self.index))
        index = self.index.new_full((count,), -1)
        values = self.values.detach().new_zeros(count)
        index[count - kept :] = self.index[len(self.index) - kept :]
        values[count - kept :] = self.values.detach()[len(self.values) - kept :]
        self.index, self.values = index, nn.Parameter(values, requires_grad=self.values.requires_grad)

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
        outside = (index < -1) | (index >= self.total)
        falls = (index[1:] < index[:-1]) | ((index[1:] == index[:-1]) & (index[1:] != -1))
        if bool(outside.any()) or bool(falls.any()):
            raise DataError(
                f"The {len(index):,} positions of a sparse delta must rise and lie in [0, {self.total:,}), "
                "but they do not; the file that they were loaded from is damaged."
            )
        edges = torch.tensor([self.offsets[t.name][0] for t in self.tensors] + [self.total])
        cuts = torch.searchsorted(index, edges.to(index.device)).cpu().tolist()
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

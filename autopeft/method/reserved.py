"""Rows that prompts reserve in a sequence: where they are to lie, and where they came to lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from autopeft.spec import Site

__all__ = ["Reserved", "Slot", "reserve", "reserved_rows"]


@dataclass(frozen=True)
class Slot:
    """Consecutive rows that a prompt fills.

    Attributes:
        length: how many rows.
        offset: how many real tokens of each text lie between the `anchor` and the rows; all of them where a
            text has fewer, so that they move while it grows. Rows at the front (offset 0) lie before padding
            on the left too, but where windows slide or distances are all that tells positions.
        anchor: the `front` or the `end` of each text. At the end the place moves while text is written, so
            that no step of generation can go on from a cache.
        renews: in front of a layer, they are no further rows: those that the entry has already are made anew.
        leaves: in front of a layer, they stand in that layer alone: what it has made of them is taken off.
    """

    length: int
    offset: int = 0
    anchor: Literal["front", "end"] = "front"
    renews: bool = False
    leaves: bool = False

    @property
    def adds(self) -> int:
        """How many rows it makes the sequence longer by, in all layers that follow."""
        return 0 if self.renews or self.leaves else self.length

    @property
    def in_front(self) -> bool:
        """Whether it lies before everything else."""
        return self.anchor == "front" and self.offset == 0


@dataclass(frozen=True)
class Reserved:
    """Where reserved rows lie among the positions of a batch.

    Attributes:
        count: how many rows, the same for each example.
        tokens: how many positions the text has, padding included; `None` where that is not known (images).
        right: they lie at the end (images, whose rows have no order).
        inner: the rows that there were before a layer put others in front; `None` where none did.
        owners: the entries whose rows these are, each with how many, in the order of the slots.
        columns: (1 or batch, count), the position of each row, in the order of the slots; `None` where they
            lie in front, or at the end, in this order.
        kept: (1 or batch, tokens), the position of each token; `None` as `columns`.
        ordinals: (1 or batch, count), how many real tokens and rows come before each row; `None` as
            `columns`.
    """

    count: int = 0
    tokens: int | None = None
    right: bool = False
    columns: Tensor | None = None
    kept: Tensor | None = None
    ordinals: Tensor | None = None
    owners: tuple[tuple[str, int], ...] = ()
    inner: Reserved | None = None

    @property
    def late(self) -> int:
        """How many of the rows layers have put in front."""
        return 0 if self.inner is None else self.count - self.inner.count + self.inner.late

    def text(self, states: Tensor) -> Tensor:
        """The positions (batch, tokens, …) of the text among all positions (batch, count + tokens, …), or
        among those that there were in a layer below, whose rows may have left."""
        if self.inner is not None:
            return replace(self.inner, tokens=self.tokens).text(states)
        late = 0 if self.tokens is None else max(0, states.shape[1] - self.count - self.tokens)
        states = states[:, : states.shape[1] - late] if self.right else states[:, late:]
        if self.kept is not None:
            return states.gather(1, _index(self.kept, states, self.kept.shape[1]))
        if self.right:
            return states[:, : states.shape[1] - self.count]
        return states[:, self.count :]

    def filled(self, states: Tensor, rows: Tensor) -> Tensor:
        """All positions (batch, positions, …), with `rows` (batch, count, …) at the reserved ones."""
        if self.columns is not None:
            return states.scatter(1, _index(self.columns, states, self.count), rows.to(states.dtype))
        if self.right:
            return torch.cat([states[:, : states.shape[1] - self.count], rows], dim=1)
        return torch.cat([rows, states[:, self.count :]], dim=1)

    def around(self, text: Tensor, rows: Tensor) -> Tensor:
        """The text (batch, tokens, …) with `rows` (batch, count, …) put where they are reserved."""
        if self.columns is None or self.kept is None:
            return torch.cat([text, rows] if self.right else [rows, text], dim=1)
        longer = text.new_zeros(text.shape[0], self.count + text.shape[1], *text.shape[2:])
        longer = longer.scatter(1, _index(self.kept, longer, text.shape[1]), text)
        return longer.scatter(1, _index(self.columns, longer, self.count), rows)

    def placed(self, text: Tensor, like: Tensor) -> Tensor:
        """`text` (1 or batch, tokens, width) at the positions of the text, and zeros elsewhere, in the shape
        of `like` (batch, positions, width)."""
        whole = text.expand(like.shape[0], -1, -1)
        if self.kept is not None:
            zeros = torch.zeros_like(like, dtype=text.dtype)
            return zeros.scatter(1, _index(self.kept, zeros, text.shape[1]), whole)
        return pad(whole, (0, 0, 0, self.count) if self.right else (0, 0, self.count, 0))

    def led_by(self, owners: tuple[tuple[str, int], ...], tokens: int) -> Reserved:
        """These rows behind those of `owners`, which a layer puts in front of all positions (of images: at
        the end)."""
        count = sum(n for _, n in owners)
        if self.right:
            return Reserved(self.count + count, tokens, True, owners=self.owners + owners, inner=self)
        columns = kept = None
        if self.columns is not None and self.kept is not None:
            first = torch.arange(count, device=self.columns.device).expand(len(self.columns), -1)
            columns, kept = torch.cat([first, self.columns + count], dim=1), self.kept + count
        return Reserved(
            self.count + count, tokens, False, columns, kept, owners=owners + self.owners, inner=self
        )

    def left(self) -> Reserved:
        """The rows that there were before those that `led_by` put in front last, which leave."""
        assert self.inner is not None
        return replace(self.inner, tokens=self.tokens)

    def spread(self, rows: Tensor, like: Tensor, owner: str | None) -> Tensor:
        """`rows` (1 or batch, its rows, width) of an entry at its positions, and zeros elsewhere, in the
        shape of `like` (batch, positions, width)."""
        start, _ = self._of(owner)
        whole = pad(rows, (0, 0, start, self.count - start - rows.shape[1]))
        return self.filled(torch.zeros_like(like), whole.expand(like.shape[0], -1, -1))

    def own(self, states: Tensor, owner: str | None) -> Tensor:
        """What lies at an entry's positions, (batch, its rows, …), of all positions (batch, positions, …)."""
        start, count = self._of(owner)
        return self._rows(states)[:, start : start + count]

    def renewed(self, states: Tensor, rows: Tensor, owner: str | None) -> Tensor:
        """All positions (batch, positions, …), with `rows` (batch, its rows, …) at an entry's."""
        start, count = self._of(owner)
        whole = self._rows(states)
        return self.filled(states, torch.cat([whole[:, :start], rows, whole[:, start + count :]], dim=1))

    def _of(self, owner: str | None) -> tuple[int, int]:
        """Where an entry's rows begin among the reserved ones, and how many they are."""
        names = [name for name, _ in self.owners]
        place = names.index(str(owner))
        return sum(n for _, n in self.owners[:place]), self.owners[place][1]

    def _rows(self, states: Tensor) -> Tensor:
        """The reserved positions (batch, count, …) among all, in the order of the slots."""
        if self.columns is not None:
            return states.gather(1, _index(self.columns, states, self.count))
        return states[:, states.shape[1] - self.count :] if self.right else states[:, : self.count]


def reserve(slots: Sequence[Slot], mask: Tensor | None, tokens: int, *, beside: bool = False) -> Reserved:
    """Lay rows into a batch of texts.

    Args:
        slots: in the order in which the rows come.
        mask: (batch, tokens), 1 at real tokens; `None` where all are.
        tokens: positions of the texts, padding included.
        beside: rows at the front are to lie behind padding on the left, beside the text: windows and relative
            biases count positions, whatever lies there.
    """
    count = sum(slot.length for slot in slots)
    padded = beside and mask is not None and not bool(mask[:, :1].all())
    if all(slot.in_front for slot in slots) and not padded:
        return Reserved(count, tokens)
    seen = torch.ones(1, tokens, dtype=torch.long) if mask is None else mask.long()
    real = seen.cumsum(1)
    before = torch.cat([_before(slot, real[:, -1:]) for slot in slots], dim=1)
    # The column of text that follows each row: the first one, or that behind the last token before it.
    follows = (real[:, None] < before[:, :, None]).sum(-1) + 1
    ahead = (real == 0).sum(1, keepdim=True) if padded else torch.zeros_like(real[:, :1])
    follows = torch.where(before == 0, ahead, follows)
    rank = follows.argsort(dim=1, stable=True).argsort(dim=1)
    columns = torch.arange(tokens, device=real.device)
    kept = columns + (follows[:, :, None] <= columns).sum(1)
    return Reserved(count, tokens, False, follows + rank, kept, before + rank)


def _before(slot: Slot, total: Tensor) -> Tensor:
    """How many real tokens come before each row of a slot, (batch, length), of `total` (batch, 1)."""
    offset = torch.full_like(total, slot.offset).minimum(total)
    return (offset if slot.anchor == "front" else total - offset).expand(-1, slot.length)


def reserved_rows(module: Any, sites: Iterable[Site]) -> int:
    """How many rows a module reserves at all of these sites together."""
    return sum(slot.adds for site in sites for slot in module.slots(site))


def _index(columns: Tensor, like: Tensor, length: int) -> Tensor:
    """(1 or batch, length) as an index into dimension 1 of `like`."""
    flat = columns.to(like.device).expand(like.shape[0], length)
    return flat.view(*flat.shape, *[1] * (like.ndim - 2)).expand(*flat.shape, *like.shape[2:])

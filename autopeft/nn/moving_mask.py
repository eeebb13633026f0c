"""A mask that moves while it trains: what it leaves stays stored, and at rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autopeft.nn.chosen_entries import ChosenEntries
from autopeft.nn.ranked_entries import ranked
from autopeft.spec import TensorSpec

__all__ = ["MovingMask"]

_log = logging.getLogger("autopeft")


class MovingMask(ChosenEntries):
    """Values at all entries that were in a mask so far, of which those in the present mask train.

    Gradients outside the mask are zero, and what rests stays to the last bit, whatever the optimizer
    remembers of it or decays. Who moves the mask has the optimizer begin anew with `entries.values`, whose
    places then belong to other entries.

    Args:
        k: entries of a mask.
        bound: entries of all masks together, at most.
        name: of the method, as messages call it.

    Attributes:
        active: whether each place is in the mask, (bound,); `None` of a deployed form.
        bounded: whether some mask did not fit.
    """

    active: Tensor | None

    def __init__(self, tensors: Sequence[TensorSpec], k: int, bound: int, name: str) -> None:
        super().__init__(tensors, bound)
        self.k, self.bound, self.name = k, bound, name
        self.register_buffer("active", torch.zeros(bound, dtype=torch.bool))
        self.bounded = False
        self._resting: Tensor | None = None

    def clear(self) -> None:
        """Store nothing."""
        self.entries.index.fill_(-1)
        nn.init.zeros_(self.entries.values)
        self.bounded = False

    def move(self, mask: Tensor) -> None:
        """Make these positions the mask; they have to fit."""
        self.entries.extend(mask)
        assert self.active is not None
        self.active.copy_(torch.isin(self.entries.index, mask.to(self.entries.index)))

    def best(self, scores: Tensor) -> Tensor:
        """The k best entries; where they do not fit, the best of what is stored and of the new ones that do.

        Args:
            scores: of all entries, one tensor after another.

        Raises:
            AutoPEFTError: some score is not finite.
        """
        best, held = ranked([scores], self.k, self.name), self.entries.held
        new = best[~torch.isin(best, held)]
        free = len(self.entries.index) - len(held)
        if len(new) <= free:
            return best
        if not self.bounded:
            _log.warning(
                "%s stores %s entries at most and has no room for a whole new mask: it takes the best of "
                "those that it stores; raise `stored` for more.",
                self.name,
                f"{self.bound:,}",
            )
            self.bounded = True
        among = torch.cat([held, new[:free]]).sort().values
        return among[scores[among].argsort(descending=True, stable=True)[: self.k]]

    def begin(self) -> None:
        """Where a deployed form trains on, have room for further masks; what it stores is the present one."""
        if self.active is None:
            self.entries.hold(self.bound)
            self.active = self.entries.index >= 0

    def after_backward(self, step: int, total: int) -> None:
        gradient = self.entries.values.grad
        if gradient is not None and self.active is not None:
            gradient.masked_fill_(~self.active, 0.0)

    def before_update(self, step: int, total: int) -> None:
        self._resting = self.entries.values.detach().clone()

    @torch.no_grad()
    def after_step(self, step: int, total: int) -> None:
        if self._resting is not None and self.active is not None:
            self.entries.values.copy_(torch.where(self.active, self.entries.values, self._resting))
        self._resting = None

    def deploy(self) -> None:
        """Keep the entries of all masks, without the places that are free."""
        self.entries.hold(len(self.entries.held))
        self.active = None

    def resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.entries.hold(min(self.bound, shapes["entries.index"][0]))
        if self.active is None and "active" in shapes:  # a deployed form had trained on
            self.active = torch.zeros_like(self.entries.index, dtype=torch.bool)

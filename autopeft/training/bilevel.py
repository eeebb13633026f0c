"""The upper level of a phase: held-out rows, and the gradients that a module's `outer` asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy as copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.devices import generator_state, restore_generator
from autopeft.method import OuterStep
from autopeft.training.contexts import learning
from autopeft.training.errors import NonFiniteLoss
from autopeft.training.gradient import Gradient
from autopeft.training.optimizer import PhaseOptimizer

__all__ = ["Outer"]

Batch = dict[str, Tensor]
_State = tuple[Tensor, Tensor | None]


@dataclass
class Outer:
    """Calls a phase's `outer` before each of its steps.

    Attributes:
        act: the phase's `outer`.
        gradient: of the loop; the passes share its micro-batches and its way out of full memory.
        owners: modules and policies, whose terms belong to the lower level's loss.
        optimizer: the lower level's.
        held_out: batches of held-out rows, without end.
        learners: everything that may require gradients.
    """

    act: Callable[[OuterStep], None]
    gradient: Gradient
    owners: Sequence[Any]
    optimizer: PhaseOptimizer
    held_out: Iterator[Batch]
    learners: Sequence[nn.Parameter]

    def __call__(self, batch: Batch, step: int) -> None:
        """Before `step` (0-based), which trains on `batch`.

        Raises:
            NonFiniteLoss: a loss of either level is NaN or infinite.
            OutOfMemory: see `Gradient.accumulate`.
        """
        self.act(_Step(self, batch, step))


class _Step:
    """See `autopeft.method.OuterStep`."""

    def __init__(self, outer: Outer, batch: Batch, step: int) -> None:
        self.outer, self.batch, self.step = outer, batch, step
        self._held_out: Batch | None = None
        self._draws: dict[str, _State] = {}

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return self.outer.optimizer.parameters

    @property
    def rates(self) -> Sequence[float]:
        return self.outer.optimizer.rates

    def lower(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        return self._same_draws("lower", self.batch, self.outer.owners, wanted)

    def upper(self, wanted: Sequence[nn.Parameter]) -> list[Tensor]:
        if self._held_out is None:
            self._held_out = next(self.outer.held_out)
        return self._same_draws("upper", self._held_out, (), wanted)

    @torch.no_grad()
    def ahead(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        inner, parameters = self.outer.optimizer.inner, self.parameters
        values = [p.detach().clone() for p in parameters]
        remembered = {p: {k: copy(v) for k, v in state.items()} for p, state in inner.state.items()}
        try:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            inner.step()
            return [p.detach().clone() for p in parameters]
        finally:
            inner.zero_grad(set_to_none=True)
            inner.state.clear()
            inner.state.update(remembered)
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)

    def _same_draws(
        self, level: str, batch: Batch, owners: Sequence[Any], wanted: Sequence[nn.Parameter]
    ) -> list[Tensor]:
        """The first pass of a level goes on from the present state of the generators, further ones repeat
        it, and afterwards the generators are where all first passes have left them."""
        device = self.outer.gradient.device
        now = generator_state(device)
        again = level in self._draws
        restore_generator(self._draws.setdefault(level, now), device)
        with torch.enable_grad(), learning(self.outer.learners, wanted):
            loss, found = self.outer.gradient.of(batch, owners, wanted)
        if not np.isfinite(loss):
            raise NonFiniteLoss("loss", loss, self.step + 1, self.outer.optimizer.highest_rate)
        if again:
            restore_generator(now, device)
        return found

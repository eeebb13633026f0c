"""A phase that drives itself: its steps, its rows, and the losses and gradients that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.training.forward import Forward
from autopeft.training.gradient import Gradient
from autopeft.training.losses import slice_rows
from autopeft.training.modes import evaluation_mode, learning

__all__ = ["PhaseSession"]

Batch = dict[str, Tensor]


@dataclass
class PhaseSession:
    """See `autopeft.method.Session`.

    Attributes:
        steps: of the phase.
        backbone: the backbone's own parameters, by name.
        forward: the model's plain forward: states that come from the trunk have no gradient.
        gradient: of the training, whose loss, micro-batches and way out of full memory are shared.
        take: takes the next step, or says that none is left.
        rows: gives batches of so many rows, by default the plan's.
        drawing: within, modules draw as they do in a step.
        learners: everything that may require gradients in this phase.
    """

    steps: int
    backbone: Mapping[str, nn.Parameter]
    forward: Forward
    gradient: Gradient
    take: Callable[[], bool]
    rows: Callable[[int | None], Iterator[Batch]]
    drawing: Callable[[], AbstractContextManager[None]]
    learners: Sequence[nn.Parameter]

    def step(self) -> bool:
        return self.take()

    def batches(self, rows: int | None = None) -> Iterator[Batch]:
        return self.rows(rows)

    def losses(self, batch: Mapping[str, Tensor]) -> Tensor:
        loss, found = self.gradient.loss, []
        with evaluation_mode(self.forward.model):
            for start in range(0, len(batch["labels"]), self.gradient.micro_rows):
                part = slice_rows(batch, start, start + self.gradient.micro_rows)
                found.append(loss.each(self.forward(part), part["labels"]))
        return torch.cat(found)

    def gradients(
        self, batch: Mapping[str, Tensor], wanted: Sequence[nn.Parameter], *, training: bool = False
    ) -> list[Tensor]:
        model = self.forward.model
        mode = self.drawing() if training else evaluation_mode(model)
        gradient = Gradient(
            self.forward, self.gradient.loss, micro_rows=self.gradient.micro_rows, device=self.gradient.device
        )
        for parameter in wanted:
            parameter.grad = None
        with mode, torch.enable_grad(), learning([*self.learners, *wanted], wanted):
            try:
                gradient.accumulate(batch, (), wanted)
                return [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
            finally:
                self.gradient.micro_rows = gradient.micro_rows
                for parameter in wanted:
                    parameter.grad = None

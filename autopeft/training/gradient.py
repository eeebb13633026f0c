"""The gradient of one step: micro-batches that add up to the whole batch, and the way out of full memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.hybrid.events import loss_terms
from autopeft.hybrid.loss_step import Step
from autopeft.tasks.kinds import Loss
from autopeft.training.errors import OutOfMemory, ran_out_of_memory
from autopeft.training.forward import Forward
from autopeft.training.losses import slice_rows
from autopeft.training.modes import generator_state, restore_generator
from autopeft.training.together import team_of

__all__ = ["Gradient"]

RETRIES = 3


class Gradient:
    """Forward and backward over a batch.

    Of a model that lies in parts in several processes, each takes its part of the rows, and all have the
    gradient of the whole batch in the end.

    Attributes:
        micro_rows: rows at once; halved when memory does not suffice.
        team: the processes.
    """

    def __init__(self, forward: Forward, loss: Loss, *, micro_rows: int, device: torch.device) -> None:
        self.forward = forward
        self.loss = loss
        self.micro_rows = micro_rows
        self.device = device
        self.team = team_of(forward.model)

    def accumulate(
        self,
        batch: Mapping[str, Tensor],
        owners: Sequence[Any],
        parameters: Sequence[nn.Parameter],
    ) -> float:
        """Add the batch's gradient to the parameters' (which hold none before); returns the loss, the terms
        of the `owners` (modules and policies) included.

        When memory runs out, the step starts again from the same random state with half as many rows at
        once, up to three times; in several processes at once, which would have to do so together, it does
        not.

        Raises:
            OutOfMemory: it did not suffice even then.
        """
        state = generator_state(self.device)
        for attempt in range(RETRIES + 1):
            try:
                return self._summed(batch, owners, parameters)
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error) or self.team.size > 1:
                    raise
                if attempt == RETRIES or self.micro_rows == 1:
                    raise OutOfMemory(
                        f"Training ran out of memory even with {self.micro_rows} rows at once; lower "
                        "`max_length`, take a backbone in bf16, or turn on gradient checkpointing."
                    ) from error
            # Past the handler the failed pass's frames are gone, and what they held can be freed.
            for parameter in parameters:
                parameter.grad = None
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_rows = max(1, min(self.micro_rows, _rows(batch)) // 2)
            restore_generator(state, self.device)
        raise AssertionError("unreachable")

    def _summed(
        self, batch: Mapping[str, Tensor], owners: Sequence[Any], parameters: Sequence[nn.Parameter]
    ) -> float:
        """Gradient and loss of a batch, of all processes together."""
        loss = self.team.add(self._pass(batch, owners), parameters)
        if not self.team.even(_rows(batch)):  # they may have drawn differently often
            restore_generator(self.team.first(generator_state(self.device)), self.device)
        return loss

    def _pass(self, batch: Mapping[str, Tensor], owners: Sequence[Any]) -> Tensor:
        """Gradient and loss of this process' part of a batch."""
        rows = _rows(batch)
        weight = self.loss.weight(batch)
        total = torch.zeros((), device=self.device)
        for start, stop, counts in self.team.parts(rows, self.micro_rows):
            part = slice_rows(batch, start, stop)
            share = _rows(part) / rows
            step = Step(
                self.forward.model,
                self.forward.inputs(part),
                self.forward(part),
                forward=partial(self._further, part),
                total=self.loss.total,
                divisor=weight * share,
            )
            terms = loss_terms(owners, step)
            loss = self.loss.total(step.logits, step.batch) / weight / step.draws
            # A term of the parameters alone counts once in all, one of the activations as the mean over rows.
            if terms is not None:
                loss = loss + terms * share
            total += _backward(loss, counts)
            # Each has its own backward, so that the graph of one of them is kept at a time.
            for _ in range(1, step.draws):
                loss = self.loss.total(step.again(), step.batch) / weight / step.draws
                total += _backward(loss, counts)
        return total

    def _further(self, part: Mapping[str, Tensor], batch: Mapping[str, Any], altered: bool) -> Tensor:
        """Logits of another batch than the part, or of the part with what is stored of it."""
        return self.forward.whole(batch) if altered else self.forward(part)


def _backward(loss: Tensor, counts: bool) -> Tensor:
    """Add the gradient of a loss, of zero where it does not count; returns that loss."""
    loss = loss if counts else 0 * loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _rows(batch: Mapping[str, Tensor]) -> int:
    return int(batch["labels"].shape[0])

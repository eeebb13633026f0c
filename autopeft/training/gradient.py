"""The gradient of one step: micro-batches that add up to the whole batch, and the way out of full memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.devices import empty_cache, generator_state, restore_generator
from autopeft.hybrid.events import loss_terms
from autopeft.hybrid.loss_step import Step
from autopeft.tasks.kinds import Loss
from autopeft.training.distributed import team_of
from autopeft.training.errors import OutOfMemory, ran_out_of_memory
from autopeft.training.forward import Forward
from autopeft.training.losses import slice_rows

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
        rows = len(batch["labels"])
        for attempt in range(RETRIES + 1):
            try:
                loss = self.team.all_reduce(self._pass(batch, owners), parameters)
                if rows % self.team.size:  # the processes may have drawn differently often
                    restore_generator(self.team.first(generator_state(self.device)), self.device)
                return loss
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
            empty_cache(self.device)
            self.micro_rows = max(1, min(self.micro_rows, rows) // 2)
            restore_generator(state, self.device)
        raise AssertionError("unreachable")

    def of(
        self, batch: Mapping[str, Tensor], owners: Sequence[Any], wanted: Sequence[nn.Parameter]
    ) -> tuple[float, list[Tensor]]:
        """The loss of a batch, and its gradient for each of the `wanted`, which hold none afterwards.

        Raises:
            OutOfMemory: see `accumulate`.
        """
        for parameter in wanted:
            parameter.grad = None
        try:
            loss = self.accumulate(batch, owners, wanted)
            return loss, [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
        finally:
            for parameter in wanted:
                parameter.grad = None

    def _pass(self, batch: Mapping[str, Tensor], owners: Sequence[Any]) -> Tensor:
        """Gradient and loss of this process' part of a batch."""
        rows, weight = len(batch["labels"]), self.loss.weight(batch)
        total = torch.zeros((), device=self.device)
        for start, stop, counts in self.team.parts(rows, self.micro_rows):
            part = slice_rows(batch, start, stop)
            share = len(part["labels"]) / rows
            step = Step(
                self.forward.model,
                self.forward.inputs(part),
                self.forward(part),
                forward=partial(self._further, part),
                total=self.loss.total,
                apart=self.loss.divergence,
                divisor=weight * share,
            )
            terms = loss_terms(owners, step)
            # Each draw has its own backward, so that the graph of one of them is kept at a time.
            for logits in chain([step.logits], (step.again() for _ in range(1, step.draws))):
                loss = self.loss.total(logits, step.batch) / weight / step.draws
                # A term of the parameters alone counts once in all, one of activations as the mean over rows.
                if terms is not None:
                    loss, terms = loss + terms * share, None
                if not counts:
                    loss = 0 * loss
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        return total

    def _further(self, part: Mapping[str, Tensor], batch: Mapping[str, Any], altered: bool) -> Tensor:
        """Logits of another batch than the part, or of the part with what is stored of it."""
        return self.forward.whole(batch) if altered else self.forward(part)

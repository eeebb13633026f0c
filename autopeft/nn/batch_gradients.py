"""Gradients of the backbone at what it is, batch by batch: what masks are measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from autopeft.errors import UsageError
from autopeft.method import Objective

__all__ = ["GRADIENT_POWERS", "batch_gradients", "clip_factor", "requiring"]

Batch = dict[str, Tensor]
GRADIENT_POWERS: dict[str, Callable[[Tensor], Tensor]] = {"square": torch.square, "absolute": torch.abs}
"""What is summed of each gradient, by the option `grad_type`."""


@contextmanager
def requiring(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, these require gradients."""
    flags = [(p, p.requires_grad) for p in parameters]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def batch_gradients(
    parameters: Sequence[nn.Parameter], batches: Iterable[Batch], objective: Objective, name: str
) -> Iterator[list[Tensor]]:
    """The gradient of each batch's mean loss in fp32, zeros where the loss does not depend on a parameter.

    Gradients already held stay as they are.

    Args:
        name: of the method that measures, as the message calls it.

    Raises:
        UsageError: there is no batch.
    """
    seen = False
    with requiring(parameters):
        for batch in batches:
            seen = True
            yield [gradient.float() for gradient in objective.gradients(batch, parameters)]
    if not seen:
        raise UsageError(f"{name} needs at least one training example to calibrate on, but got none.")


def clip_factor(gradients: Iterable[Tensor], limit: float) -> Tensor:
    """What scales gradients down to the norm `limit` together, as torch's clipping does; 0 leaves them as
    they are."""
    norms = torch.stack([g.norm() for g in gradients])
    return (limit / (norms.norm() + 1e-6)).clamp(max=1.0) if limit else norms.new_ones(())

"""Whether another way gives the same logits: draws from one seed, and parameters away from their start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from autopeft.backbones import base_model_of
from autopeft.hybrid import Hybrid
from autopeft.training.contexts import generator_state

__all__ = ["alike", "drawn", "draws", "is_rough", "moved"]

# Of the largest logit; the same arithmetic on other shapes rounds differently.
_TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 5e-2  # of backbones in 16 bits
_STEP = 0.02


def alike(logits: Tensor, plain: Tensor, model: PreTrainedModel) -> bool:
    """Whether logits are the plain ones up to rounding; not where there are none."""
    if not plain.numel():
        return False
    tolerance = _ROUGH_TOLERANCE if is_rough(model) else _TOLERANCE
    limit = tolerance * max(1.0, float(plain.abs().max()))
    return bool((logits - plain).abs().max() <= limit)


def is_rough(model: PreTrainedModel) -> bool:
    """Whether a backbone computes in 16 bits."""
    return next(base_model_of(model).parameters()).dtype.itemsize < 4


def drawn(logits: Callable[[], Tensor]) -> Tensor:
    """Logits in fp32, with draws from one seed."""
    torch.manual_seed(0)
    return logits().float()


def draws(logits: Callable[[], Tensor], device: torch.device) -> bool:
    """Whether something draws while logits are computed."""
    before = generator_state(device)
    logits()
    after = generator_state(device)
    pairs = zip(before, after, strict=True)
    return any(a is not None and b is not None and not torch.equal(a, b) for a, b in pairs)


@contextmanager
def moved(hybrid: Hybrid) -> Iterator[None]:
    """Within, the hybrid's parameters are a small step from where they were; its buffers are kept too."""
    parameters = list(hybrid.root.parameters())
    before = [(t, t.detach().clone()) for t in (*parameters, *hybrid.root.buffers())]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn_like(parameter), alpha=_STEP)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)

"""One vector that stands for a text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from autopeft.spec import BackboneSpec

__all__ = ["Summary", "summarised", "summary_of"]

Summary = Literal["first", "last", "mean"]


def summary_of(spec: BackboneSpec) -> Summary:
    """What stands for a text where a backbone reads it: [CLS] in encoders; the last token in decoders, which
    have read all of it there; the mean in encoders behind which a decoder reads, as these have no [CLS]."""
    if spec.encoder_decoder:
        return "mean"
    return "last" if spec.stacks[0].causal else "first"


def summarised(states: Tensor, mask: Tensor | None, summary: Summary) -> Tensor:
    """The first or the last real token of each text, or the mean over all of them, (batch, width), in the
    states' dtype.

    Args:
        states: (batch, tokens, width), of the text alone.
        mask: (batch, tokens), 1 at real tokens, on whichever side the padding is; `None` where all are.
    """
    if summary == "mean":
        return _mean(states, mask)
    if mask is None:
        return states[:, 0] if summary == "first" else states[:, -1]
    real = mask.to(states.device)
    order = torch.arange(real.shape[1], device=states.device)
    place = (real * order).argmax(1) if summary == "last" else real.long().argmax(1)
    return states[torch.arange(len(states), device=states.device), place.to(states.device)]


def _mean(states: Tensor, mask: Tensor | None) -> Tensor:
    # The sum over a long text may be beyond what 16 bits hold, and the count of its tokens between two of
    # their numbers.
    wide = torch.promote_types(states.dtype, torch.float32)
    if mask is None:
        return states.mean(1, dtype=wide).to(states.dtype)
    weights = mask.to(states.device, wide)[..., None]
    return ((states * weights).sum(1) / weights.sum(1).clamp_min(1)).to(states.dtype)

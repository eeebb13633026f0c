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
    """The first or the last real token of each text, or the mean over all of them, (batch, width).

    Args:
        states: (batch, tokens, width), of the text alone.
        mask: (batch, tokens), 1 at real tokens, on whichever side the padding is; `None` where all are.
    """
    if mask is None:
        ends = {"first": lambda: states[:, 0], "last": lambda: states[:, -1], "mean": lambda: states.mean(1)}
        return ends[summary]()
    real = mask.to(states.device)
    if summary == "mean":
        weights = real.to(states.dtype)[..., None]
        return (states * weights).sum(1) / weights.sum(1).clamp_min(1)
    order = torch.arange(real.shape[1], device=states.device)
    place = (real * order).argmax(1) if summary == "last" else real.long().argmax(1)
    return states[torch.arange(len(states), device=states.device), place.to(states.device)]

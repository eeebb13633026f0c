"""Backbones in half precision under heads in full precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.assets.heads import head_names
from autopeft.errors import UsageError, near

__all__ = ["PRECISIONS", "dtype_of", "keep_head_exact"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a backbone's weights: `fp32` or `bf16`.

    Raises:
        UsageError: it is neither.
    """
    if precision not in PRECISIONS:
        raise UsageError(
            f"`precision` must be {' or '.join(map(repr, PRECISIONS))}, but got "
            f"precision={precision!r}.{near(str(precision), PRECISIONS)}"
        )
    return PRECISIONS[precision]


def keep_head_exact(model: PreTrainedModel) -> None:
    """Let a model's head compute, and be trained, in fp32, whatever its backbone hands it."""
    for name in head_names(model):
        head = model.get_submodule(name)
        head.float()
        head.register_forward_pre_hook(_in_fp32)


def _in_fp32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)

"""Prefix keys under rotary positions.

Our prefix keys are not rotated and the text keeps its positions: a query at position p meets R_p·q against k.
Hugging Face peft puts the prefix into the cache, so that the text starts at position P: R_{p+P}·q against k'.
As R_{p+P}ᵀ·R_P = R_pᵀ, both agree when k' = R_P·k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["rotate_keys"]

_FAMILIES = frozenset({"llama", "mistral", "qwen2"})
_LINEAR_ROPES = frozenset({"default", "linear", "llama3"})


def rotate_keys(model: PreTrainedModel, keys: Tensor, heads: int, position: int) -> Tensor:
    """R_position·k for keys (length, heads·d), with the model's own frequencies.

    Raises:
        ValueError: the family's positions do not work like this; the message says how they do.
    """
    family = model.config.model_type
    if family not in _FAMILIES:
        raise ValueError(
            f"Hugging Face peft lets the text start after the prefix, which on {family!r} reads other "
            "position embeddings."
        )
    if getattr(model.config, "sliding_window", None) and getattr(model.config, "use_sliding_window", True):
        raise ValueError("Hugging Face peft's prefix slides out of the attention window of this model.")
    rotary = cast(Any, model.base_model).rotary_emb
    if getattr(rotary, "rope_type", "default") not in _LINEAR_ROPES:
        raise ValueError(f"Rotary positions of type {rotary.rope_type!r} change with the length of the text.")
    shaped = keys.float().reshape(keys.shape[0], heads, -1)
    where = torch.full((1, 1), position, device=keys.device)
    cos, sin = rotary(shaped[None], where)
    cos, sin = cos[0] / rotary.attention_scaling, sin[0] / rotary.attention_scaling
    half = shaped.shape[-1] // 2
    turned = torch.cat((-shaped[..., half:], shaped[..., :half]), dim=-1)
    rotated: Tensor = shaped * cos + turned * sin
    return rotated.reshape(keys.shape).to(keys.dtype)

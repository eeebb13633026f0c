"""kv(attention) where a family's attention calls no function to be replaced, or hands nothing on to it: a
forward that calls one.

The forward computes what the class's own does, in the same order, with the products between queries, keys and
values in a function of the form that `transformers` hands its attention on to. So whatever `attention` adds
there reaches these families too: prefixes, their masks and biases, and the one position that is read. It is
on the module only while it is needed; without a prefix it gives the class's own numbers bit for bit.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.injection.attention import attending
from autopeft.injection.disentangled import deberta, deberta_v2
from autopeft.injection.frames import PREFIX, READ, SCORES

__all__ = ["OwnForward", "dispatching"]


def _mpnet_scores(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(module.attention_head_size)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = module.dropout(nn.functional.softmax(scores, dim=-1))
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


_attend_mpnet = attending(_mpnet_scores, fused=False, scales=False)


def _mpnet(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, ...]:
    """MPNet's self-attention. The encoder makes `position_bias` (batch, heads, queries, keys) once for all
    layers; columns of a prefix have none."""
    heads = (*hidden_states.shape[:-1], -1, module.attention_head_size)
    query, key, value = (p(hidden_states).view(heads).transpose(1, 2) for p in (module.q, module.k, module.v))
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    attended, weights = _attend_mpnet(module, query, key, value, attention_mask, **kwargs)
    output = module.o(attended.flatten(2))
    return (output, weights) if output_attentions else (output,)


def _siglip(
    module: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """SigLIP's self-attention, which calls the function that its config names, but hands nothing on to it."""
    heads = (*hidden_states.shape[:-1], -1, module.head_dim)
    query, key, value = (
        project(hidden_states).view(heads).transpose(1, 2)
        for project in (module.q_proj, module.k_proj, module.v_proj)
    )
    eager = sys.modules[type(module).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
    attended, weights = attend(
        module,
        query,
        key,
        value,
        attention_mask,
        is_causal=module.is_causal,
        scaling=module.scale,
        dropout=module.dropout if module.training else 0.0,
        **{name: kwargs[name] for name in (PREFIX, READ, SCORES) if name in kwargs},
    )
    return module.out_proj(attended.flatten(2).contiguous()), weights


# By the class's name, so that no file of a model is imported for it.
_FORWARDS: Mapping[str, Callable[..., Any]] = {
    "transformers.models.deberta.modeling_deberta.DisentangledSelfAttention": deberta,
    "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": deberta_v2,
    "transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention": _mpnet,
    "transformers.models.siglip.modeling_siglip.SiglipAttention": _siglip,
}


@dataclass(frozen=True)
class OwnForward:
    """A forward on one module, in place of its class's."""

    module: nn.Module

    def remove(self) -> None:
        """Give the module its class's forward again."""
        self.module.__dict__.pop("forward", None)


def dispatching(modules: Iterable[nn.Module]) -> list[OwnForward]:
    """Let those of these attentions dispatch that do not by themselves and are known here.

    A module that has a forward of its own already keeps it.

    Returns:
        What takes the forwards off again.
    """
    found = []
    for module in modules:
        forward = _FORWARDS.get(f"{type(module).__module__}.{type(module).__qualname__}")
        if forward is not None and "forward" not in module.__dict__:
            module.__dict__["forward"] = partial(forward, module)
            found.append(OwnForward(module))
    return found

"""kv(attention) where a family's attention calls no function to be replaced, or hands nothing on to it: a
forward that calls one.

The forward computes what the class's own does, in the same order, with the products between queries, keys and
values in a function of the form that `transformers` hands its attention on to. So whatever `attention` adds
there reaches these families too: prefixes, their masks and biases, and the one position that is read. It is
on the module only while it is needed; without a prefix it gives the class's own numbers bit for bit. What the
configuration calls the implementation stays as it is, since such classes ask for it by name.
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
from torch.nn.functional import pad
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.injection.attention import attending
from autopeft.injection.frames import PREFIX, READ, SCORES

__all__ = ["OwnForward", "dispatching", "is_undispatched"]


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


def _bloom_scores(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    by_head = [t.flatten(0, 1) for t in (query, key, value)]
    scores = position_bias.flatten(0, 1).baddbmm(
        by_head[0], by_head[1].transpose(1, 2), beta=module.beta, alpha=module.inv_norm_factor
    )
    seen = scores.view(*query.shape[:3], -1)
    seen = seen if attention_mask is None else seen + attention_mask
    weights = module.attention_dropout(
        nn.functional.softmax(seen, dim=-1, dtype=torch.float32).to(query.dtype)
    )
    attended = torch.bmm(weights.flatten(0, 1), by_head[2]).view(*query.shape[:3], -1)
    return attended.transpose(1, 2), weights


_attend_bloom = attending(_bloom_scores, fused=False, scales=False)


def _bloom(
    module: Any,
    hidden_states: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None,
    layer_past: Any = None,
    use_cache: bool = False,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """BLOOM's attention. Its `alibi` (batch · heads, 1, keys) grows with the place of the key; beside a
    prefix the distance from the query to the key is taken, which to the prefix is none."""
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    if layer_past is not None:
        key, value = layer_past.update(key, value, module.layer_idx)
    bias = alibi.view(*key.shape[:2], 1, -1)
    if PREFIX in kwargs:
        bias = bias - bias[..., -query.shape[2] :].transpose(2, 3)
    attended, weights = _attend_bloom(module, query, key, value, attention_mask, position_bias=bias, **kwargs)
    output = module.dense(attended.flatten(2))
    output = nn.functional.dropout(output, p=module.hidden_dropout, training=module.training)
    return residual + output, weights


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


# DeBERTa's scores are products between contents, and between contents and relative positions (He et al. 2021,
# arXiv:2006.03654, equation 4). The second part comes to the function as `position_bias`, so that what has no
# position (the columns of a prefix, rows put in front of a layer) has none of it. The mask is boolean: the
# lowest number takes the place of a hidden score.


def _scale(module: Any, terms: int) -> Tensor:
    """By what the scores are divided: the root of the width of a head times the number of their terms."""
    return torch.sqrt(torch.tensor(module.attention_head_size, dtype=torch.float) * terms)


def _deberta_weights(module: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = module.dropout(nn.functional.softmax(scores, dim=-1))
    return weights


def _of_values(weights: Tensor, value: Tensor) -> Tensor:
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _deberta_v2_scores(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    bias, scale = kwargs.get("position_bias"), _scale(module, _deberta_v2_terms(module)).to(query.dtype)
    scores = torch.matmul(query, key.transpose(-1, -2) / scale)
    weights = _deberta_weights(module, scores if bias is None else scores + bias, mask)
    return _of_values(weights, value), weights


def _deberta_scores(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    bias, scale = kwargs.get("position_bias"), _scale(module, 1 + len(module.pos_att_type)).to(query.dtype)
    scores = torch.matmul(query / scale, key.transpose(-1, -2))
    scores = scores if bias is None else scores + bias
    if module.head_logits_proj is not None:
        scores = _across_heads(module.head_logits_proj, scores)
    weights = _deberta_weights(module, scores, mask)
    if module.head_weights_proj is not None:
        weights = _across_heads(module.head_weights_proj, weights)
    return _of_values(weights, value), weights


def _across_heads(project: nn.Module, scores: Tensor) -> Tensor:
    mixed: Tensor = project(scores.permute(0, 2, 3, 1))
    return mixed.permute(0, 3, 1, 2)


_attend_deberta_v2 = attending(_deberta_v2_scores, fused=False, scales=False)
_attend_deberta = attending(_deberta_scores, fused=False, scales=False)


def _deberta_v2_terms(module: Any) -> int:
    return 1 + sum(term in module.pos_att_type for term in ("c2p", "p2c"))


def _framed(bias: Tensor, rows: int) -> Tensor:
    """A bias (batch, heads, queries, keys) with zeros for the rows in front."""
    return pad(bias, (rows, 0, rows, 0)) if rows else bias


def _rows_in_front(hidden: Tensor, relative: Tensor | None) -> int:
    """How many rows were put in front since the relative positions (…, queries, keys) were counted."""
    return 0 if relative is None else int(hidden.shape[1] - relative.shape[-1])


def _deberta_v2(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The self-attention of DeBERTa-v2 and v3."""
    count = module.num_attention_heads
    query, key, value = (
        module.transpose_for_scores(project(x), count)
        for project, x in (
            (module.query_proj, hidden_states if query_states is None else query_states),
            (module.key_proj, hidden_states),
            (module.value_proj, hidden_states),
        )
    )

    def apart(heads: Tensor) -> Tensor:
        return heads.view(-1, count, *heads.shape[1:])

    if module.relative_attention:
        rows, embedded = _rows_in_front(hidden_states, relative_pos), module.pos_dropout(rel_embeddings)
        bias = module.disentangled_attention_bias(
            query[..., rows:, :], key[..., rows:, :], relative_pos, embedded, _deberta_v2_terms(module)
        )
        kwargs["position_bias"] = _framed(apart(bias), rows) if isinstance(bias, Tensor) else None
    heads = (apart(query), apart(key), apart(value))
    attended, weights = _attend_deberta_v2(module, *heads, attention_mask.bool(), **kwargs)
    return attended.flatten(2), weights if output_attentions else None


def _deberta(
    module: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The self-attention of DeBERTa, whose heads hold queries, keys and values side by side."""
    if query_states is not None:  # of its decoder for masked tokens alone
        found: tuple[Tensor, Tensor | None] = type(module).forward(
            module,
            hidden_states,
            attention_mask,
            output_attentions,
            query_states,
            relative_pos,
            rel_embeddings,
        )
        return found
    split = module.transpose_for_scores
    query, key, value = split(module.in_proj(hidden_states)).chunk(3, dim=-1)
    query = query + split(module.q_bias[None, None, :])
    value = value + split(module.v_bias[None, None, :])
    if module.relative_attention and rel_embeddings is not None and relative_pos is not None:
        terms, rows = 1 + len(module.pos_att_type), _rows_in_front(hidden_states, relative_pos)
        bias = module.disentangled_att_bias(
            query[..., rows:, :] / _scale(module, terms).to(query.dtype),
            key[..., rows:, :],
            relative_pos,
            module.pos_dropout(rel_embeddings),
            terms,
        )
        kwargs["position_bias"] = _framed(bias, rows) if isinstance(bias, Tensor) else None
    attended, weights = _attend_deberta(module, query, key, value, attention_mask.bool(), **kwargs)
    return attended.flatten(2), weights if output_attentions else None


# By the class's name, so that no file of a model is imported for it.
_FORWARDS: Mapping[str, Callable[..., Any]] = {
    "transformers.models.deberta.modeling_deberta.DisentangledSelfAttention": _deberta,
    "transformers.models.deberta_v2.modeling_deberta_v2.DisentangledSelfAttention": _deberta_v2,
    "transformers.models.mpnet.modeling_mpnet.MPNetSelfAttention": _mpnet,
    "transformers.models.bloom.modeling_bloom.BloomAttention": _bloom,
    "transformers.models.siglip.modeling_siglip.SiglipAttention": _siglip,
}


def _known(module: nn.Module) -> Callable[..., Any] | None:
    return _FORWARDS.get(f"{type(module).__module__}.{type(module).__qualname__}")


def is_undispatched(module: nn.Module) -> bool:
    """Whether an attention dispatches by a forward of ours alone, whatever function its config names."""
    return _known(module) not in (None, _siglip)


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
        forward = _known(module)
        if forward is not None and "forward" not in module.__dict__:
            module.__dict__["forward"] = partial(forward, module)
            found.append(OwnForward(module))
    return found

"""Forwards of DeBERTa's disentangled attentions that call an attention function (see `undispatched`).

Their scores are products between contents, and between contents and relative positions (He et al. 2021,
arXiv:2006.03654, equation 4). The second part comes to the function as `position_bias`, so that what has no
position (the columns of a prefix, rows that were put in front of a layer) has none of it. The mask is one of
booleans: what is hidden gets the lowest number in place of its score.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from autopeft.injection.attention import attending

__all__ = ["deberta", "deberta_v2"]


def _scale(module: Any, terms: int) -> Tensor:
    """By what the scores are divided: the root of the width of a head times the number of their terms."""
    return torch.sqrt(torch.tensor(module.attention_head_size, dtype=torch.float) * terms)


def _weights(module: Any, scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights: Tensor = module.dropout(nn.functional.softmax(scores, dim=-1))
    return weights


def _attended(weights: Tensor, value: Tensor) -> Tensor:
    return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _scores_v2(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    bias, scale = kwargs.get("position_bias"), _scale(module, _terms_v2(module)).to(query.dtype)
    scores = torch.matmul(query, key.transpose(-1, -2) / scale)
    weights = _weights(module, scores if bias is None else scores + bias, mask)
    return _attended(weights, value), weights


def _scores(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    bias, scale = kwargs.get("position_bias"), _scale(module, 1 + len(module.pos_att_type)).to(query.dtype)
    scores = torch.matmul(query / scale, key.transpose(-1, -2))
    scores = scores if bias is None else scores + bias
    if module.head_logits_proj is not None:
        scores = _across_heads(module.head_logits_proj, scores)
    weights = _weights(module, scores, mask)
    if module.head_weights_proj is not None:
        weights = _across_heads(module.head_weights_proj, weights)
    return _attended(weights, value), weights


def _across_heads(project: nn.Module, scores: Tensor) -> Tensor:
    mixed: Tensor = project(scores.permute(0, 2, 3, 1))
    return mixed.permute(0, 3, 1, 2)


_attend_v2 = attending(_scores_v2, fused=False, scales=False)
_attend = attending(_scores, fused=False, scales=False)


def _terms_v2(module: Any) -> int:
    return 1 + sum(term in module.pos_att_type for term in ("c2p", "p2c"))


def _without(rows: int, heads: Tensor) -> Tensor:
    """Queries or keys (…, positions, width) without the rows in front that have no position."""
    return heads[..., rows:, :]


def _framed(bias: Tensor, rows: int) -> Tensor:
    """A bias (batch, heads, queries, keys) with zeros for the rows in front."""
    return pad(bias, (rows, 0, rows, 0)) if rows else bias


def _rows(hidden: Tensor, relative: Tensor | None) -> int:
    """How many rows were put in front since the relative positions (…, queries, keys) were counted."""
    return 0 if relative is None else int(hidden.shape[1] - relative.shape[-1])


def deberta_v2(
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
    count, asking = module.num_attention_heads, hidden_states if query_states is None else query_states
    query, key, value = (
        module.transpose_for_scores(project(x), count)
        for project, x in (
            (module.query_proj, asking),
            (module.key_proj, hidden_states),
            (module.value_proj, hidden_states),
        )
    )

    def apart(heads: Tensor) -> Tensor:
        return heads.view(-1, count, *heads.shape[1:])

    if module.relative_attention:
        rows, embedded = _rows(hidden_states, relative_pos), module.pos_dropout(rel_embeddings)
        bias = module.disentangled_attention_bias(
            _without(rows, query), _without(rows, key), relative_pos, embedded, _terms_v2(module)
        )
        kwargs["position_bias"] = _framed(apart(bias), rows) if isinstance(bias, Tensor) else None
    heads = (apart(query), apart(key), apart(value))
    attended, weights = _attend_v2(module, *heads, attention_mask.bool(), **kwargs)
    return attended.flatten(2), weights if output_attentions else None


def deberta(
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
        terms, rows = 1 + len(module.pos_att_type), _rows(hidden_states, relative_pos)
        bias = module.disentangled_att_bias(
            _without(rows, query) / _scale(module, terms).to(query.dtype),
            _without(rows, key),
            relative_pos,
            module.pos_dropout(rel_embeddings),
            terms,
        )
        kwargs["position_bias"] = _framed(bias, rows) if isinstance(bias, Tensor) else None
    attended, weights = _attend(module, query, key, value, attention_mask.bool(), **kwargs)
    return attended.flatten(2), weights if output_attentions else None

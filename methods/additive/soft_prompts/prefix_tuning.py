"""Prefix-tuning: keys and values in front of every attention, made by an MLP while they train."""

from __future__ import annotations

from pydantic import Field

from autopeft.method import PeftFormat, register
from autopeft.nn import PrefixConfig, PrefixMethod

__all__ = ["PrefixTuning"]


@register("prefix_tuning")
class PrefixTuning(PrefixMethod):
    """Attn(Q, [P_k; K], [P_v; V]), P_k and P_v (length × kv) trained for each attention, seen by all queries.

    Li & Liang 2021, arXiv:2101.00190, §4.2–4.3. The rows of all layers come from one MLP, P = W₂·tanh(W₁·E +
    b₁) + b₂ with E (length × d), W₁ (mid × d), W₂ (total width × mid), one for each type of attention
    (encoder, decoder, cross), which `deploy()` drops; mid is `reparameterization`. Defaults are those of the
    authors' code (XiangLi1999/PrefixTuning, gpt2/train_e2e.py): length 10, mid 512, no dropout; their XSum
    runs have 200 and 800. E is N(0, 1), the maps start as torch starts them: their module lies beside the
    backbone, as MAM's does (jxhe/unify-parameter-efficient-tuning). With `std` E, W₁ and W₂ are N(0, `std`)
    and the biases zero. That is how UniPELT's prefix starts, which lies in the backbone and follows BERT's
    rule, 0.02: P has a deviation of std³·√(d·mid), 0.005 on BERT-base, instead of 0.26. With
    `reparameterization: null` the rows are trained themselves, from N(0, 0.02) or N(0, `std`), which the
    authors found unstable (§4.3) and which is `p_tuning_v2` but for its dropout. Dropout acts on P. The parts
    `rows` (P or E) and `mlp` may learn at rates of their own. The prefix keys are not rotated under RoPE, and
    text keeps its positions. Not the identity at init; not mergeable.

    Deployed: 2·l·kv for each attention. Trained with the MLP: l·d + (d·mid + mid) + (mid·T + T) for each type
    of attention, T the sum of its 2·kv.
    """

    peft = PeftFormat("prefix")

    class Config(PrefixConfig):
        reparameterization: int | None = Field(
            default=512, ge=1, le=8192, description="width of the MLP; null: bare rows"
        )

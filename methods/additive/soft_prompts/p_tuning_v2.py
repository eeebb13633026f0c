"""P-tuning v2: bare keys and values in front of every attention."""

from __future__ import annotations

from pydantic import Field

from autopeft.method import PeftFormat, register
from autopeft.nn import PrefixConfig, PrefixMethod

__all__ = ["PTuningV2"]


@register("p_tuning_v2")
class PTuningV2(PrefixMethod):
    """Attn(Q, [P_k; K], [P_v; V]), P_k and P_v (length × kv) parameters of each attention.

    Liu et al. 2022, arXiv:2110.07602: deep prompts for every layer, read by a head on the text. The rows are
    parameters themselves; `reparameterization` puts prefix-tuning's MLP in front, as the authors' option
    `prefix_projection` (width 512) does. Defaults are those of the authors' code (THUDM/P-tuning-v2,
    arguments.py): length 4, no MLP, dropout 0.1 on the rows (their hidden dropout, which acts on the backbone
    too); their runs on RoBERTa-large have lengths 8 (BoolQ, COPA, WiC) to 128 (RTE). Everything starts from
    N(0, `std`), biases at zero: their modules lie in the model, so `from_pretrained` starts them by BERT's
    rule, 0.02. peft's prefix without projection starts from N(0, 1). The prefix keys are not rotated under
    RoPE, and text keeps its positions. Not the identity at init; not mergeable.

    2·l·kv parameters for each attention; what training holds with the MLP is what it holds in
    `prefix_tuning`.
    """

    peft = PeftFormat("prefix")

    class Config(PrefixConfig):
        length: int = Field(default=4, ge=1, le=4096, description="l")
        dropout: float = Field(default=0.1, ge=0, lt=1, description="on keys and values")
        std: float = Field(default=0.02, gt=0, le=1, description="of the normal that rows start from")

"""Tiny decoders of text.

Where a family has sliding windows or caps, the tiny model has them: windows shorter than the texts, and
layers of each kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import transformers
from transformers import GPT2Config, GPT2LMHeadModel

from .record import VOCABULARY, Tiny

_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: Mapping[str, Any] = {"num_key_value_heads": 2}
_SLIDING: Mapping[str, Any] = {**_GROUPED, "sliding_window": 4}
_MIXED: Mapping[str, Any] = {
    **_SLIDING,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_NO_BIAS = dict.fromkeys(("bitfit",), "bias")


def _tiny(
    name: str,
    *,
    model: str = "",
    refuses: Mapping[str, str] = _NO_BIAS,
    attentions: tuple[str, ...] = ("sdpa", "eager"),
    without: tuple[str, ...] = (),
    **options: Any,
) -> Tiny:
    """The tiny language model of `{name}Config` and `{name}ForCausalLM` (or of `model`), with `options` of
    its config and without some of the common ones."""
    kept = {k: v for k, v in _SIZES.items() if k not in without}
    made = getattr(transformers, f"{name}Config")
    return Tiny(
        partial(made, **{**kept, **options}),
        getattr(transformers, f"{model or name}ForCausalLM"),
        attentions=attentions,
        refuses=refuses,
        writes=True,
    )


_EXPERTS = {"lora-all": "experts"}
_ALIBI = {"lpt": "alibi"}
_DROPPED = ("intermediate_size",)

DECODERS = {
    "gpt2": Tiny(
        lambda: GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        GPT2LMHeadModel,
        writes=True,
    ),
    "llama": _tiny("Llama", **_GROUPED),
    "mistral": _tiny("Mistral", **_SLIDING),
    "qwen2": _tiny("Qwen2", **_MIXED, use_sliding_window=True, refuses={}),
    "qwen3": _tiny("Qwen3", **_MIXED, use_sliding_window=True, head_dim=8),
    "gemma": _tiny("Gemma", **_GROUPED, head_dim=8),
    "gemma2": _tiny("Gemma2", **_MIXED, head_dim=8, query_pre_attn_scalar=8, attentions=("eager",)),
    "gemma3_text": _tiny("Gemma3Text", model="Gemma3", **_MIXED, head_dim=8, query_pre_attn_scalar=8),
    "phi": _tiny("Phi", **_GROUPED, qk_layernorm=True, refuses={}),
    "phi3": _tiny("Phi3", **_SLIDING),
    "gpt_neox": _tiny("GPTNeoX", refuses={}),
    "opt": _tiny("OPT", ffn_dim=64, word_embed_proj_dim=16, without=_DROPPED, refuses={}),
    "falcon": _tiny("Falcon", refuses={}, without=_DROPPED),
    "mixtral": _tiny("Mixtral", **_SLIDING, num_local_experts=3, refuses={**_NO_BIAS, **_EXPERTS}),
    "qwen3_moe": _tiny(
        "Qwen3Moe",
        **_GROUPED,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        mlp_only_layers=[1],
    ),
    "olmo2": _tiny("Olmo2", **_GROUPED),
    "granite": _tiny("Granite", **_GROUPED, residual_multiplier=0.4, embedding_multiplier=3.0),
    "starcoder2": _tiny("Starcoder2", **_SLIDING, refuses={}),
    "bloom": _tiny("Bloom", refuses=_ALIBI, attentions=("eager",)),
    "gptj": _tiny("GPTJ", rotary_dim=4, refuses={}),
    "stablelm": _tiny("StableLm", **_GROUPED, use_qkv_bias=True, refuses={}),
    "cohere": _tiny("Cohere", **_GROUPED, use_qk_norm=True),
    "smollm3": _tiny("SmolLM3", **_GROUPED, no_rope_layers=[1, 0, 1]),
    "gpt_oss": _tiny(
        "GptOss",
        **_MIXED,
        head_dim=8,
        num_local_experts=3,
        num_experts_per_tok=2,
        attentions=("eager",),
        refuses=_EXPERTS,
    ),
}

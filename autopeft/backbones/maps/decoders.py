"""Site maps of decoders of text."""

from __future__ import annotations

from collections.abc import Mapping

from autopeft.backbones.maps.records import FamilyMap, Linear, Norm, Region, Sites, StackMap

__all__ = ["DECODERS"]

_GPT2_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("attn", "attn.resid_dropout", "ln_1", "pre", attends=True),
    "q": Linear("attn.c_attn", 0, 3),
    "k": Linear("attn.c_attn", 1, 3),
    "v": Linear("attn.c_attn", 2, 3),
    "qkv": Linear("attn.c_attn"),
    "o": Linear("attn.c_proj"),
    "attention_norm": Norm("ln_1"),
    "ffn": Region("mlp", "mlp", "ln_2", "pre"),
    "up": Linear("mlp.c_fc"),
    "down": Linear("mlp.c_proj"),
    "ffn_norm": Norm("ln_2"),
}

_LLAMA_SITES: Sites = {
    "layer": Region("", ""),
    "attention": Region("self_attn", "self_attn.o_proj", "input_layernorm", "pre", attends=True),
    "q": Linear("self_attn.q_proj"),
    "k": Linear("self_attn.k_proj"),
    "v": Linear("self_attn.v_proj"),
    "o": Linear("self_attn.o_proj"),
    "attention_norm": Norm("input_layernorm"),
    "ffn": Region("mlp", "mlp", "post_attention_layernorm", "pre"),
    "up": Linear("mlp.up_proj"),
    "gate_proj": Linear("mlp.gate_proj"),
    "down": Linear("mlp.down_proj"),
    "ffn_norm": Norm("post_attention_layernorm"),
}

_LLAMA = FamilyMap(
    (StackMap("decoder", "", "layers", _LLAMA_SITES, "embed_tokens", causal=True, norm="norm"),)
)

DECODERS: Mapping[str, FamilyMap] = {
    "gpt2": FamilyMap((StackMap("decoder", "", "h", _GPT2_SITES, "wte", causal=True, norm="ln_f"),)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}

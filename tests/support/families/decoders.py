"""Tiny decoders of text."""

from __future__ import annotations

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from .record import VOCABULARY, Tiny

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
    "llama": Tiny(
        lambda: LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        ),
        LlamaForCausalLM,
        writes=True,
    ),
}

"""Tiny encoder-decoders of text."""

from __future__ import annotations

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from .record import VOCABULARY, Tiny

ENCODER_DECODERS = {
    "t5": Tiny(
        lambda: T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
        ),
        T5ForConditionalGeneration,
        writes=True,
    ),
    "bart": Tiny(
        lambda: BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        BartForConditionalGeneration,
        writes=True,
    ),
}

"""Tiny encoder-decoders of text."""

from __future__ import annotations

from typing import Any

from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from .record import VOCABULARY, Tiny

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


def _like_bart(config: type[PreTrainedConfig], model: type[PreTrainedModel], **more: Any) -> Tiny:
    return Tiny(lambda: config(**{**SIZES, **more}), model, writes=True)


def _like_t5(config: type[PreTrainedConfig], model: type[PreTrainedModel], **refuses: str) -> Tiny:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4}
    ids = {"vocab_size": VOCABULARY, "decoder_start_token_id": 0, "pad_token_id": 0}
    return Tiny(lambda: config(**sizes, **ids), model, writes=True, refuses={"bitfit": "bias", **refuses})


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
    "bart": _like_bart(BartConfig, BartForConditionalGeneration),
    "mt5": _like_t5(MT5Config, MT5ForConditionalGeneration),
    "umt5": _like_t5(UMT5Config, UMT5ForConditionalGeneration, lpt="counts distances"),
    "mbart": _like_bart(MBartConfig, MBartForConditionalGeneration, scale_embedding=True),
    "pegasus": _like_bart(PegasusConfig, PegasusForConditionalGeneration, scale_embedding=True),
    "marian": _like_bart(MarianConfig, MarianMTModel, scale_embedding=True),
    "m2m_100": _like_bart(M2M100Config, M2M100ForConditionalGeneration, scale_embedding=True),
    "blenderbot": _like_bart(BlenderbotConfig, BlenderbotForConditionalGeneration, scale_embedding=True),
    "whisper": Tiny(
        lambda: WhisperConfig(
            **{k: v for k, v in SIZES.items() if k != "max_position_embeddings"},
            num_mel_bins=8,
            max_source_positions=6,
            max_target_positions=64,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        ),
        WhisperForConditionalGeneration,
        writes=True,
        modality="audio",
        refuses={"prompt": "reads sound"},
    ),
}

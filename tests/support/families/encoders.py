"""Tiny encoders of text."""

from __future__ import annotations

from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from .record import VOCABULARY, Tiny

ENCODERS = {
    "bert": Tiny(
        lambda: BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        BertForSequenceClassification,
    ),
    "roberta": Tiny(
        lambda: RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=1,
        ),
        RobertaForSequenceClassification,
        padding=1,
    ),
    "distilbert": Tiny(
        lambda: DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=64
        ),
        DistilBertForSequenceClassification,
    ),
    "mpnet": Tiny(
        lambda: MPNetConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
        ),
        MPNetForSequenceClassification,
        attentions=("eager",),
        padding=1,
        checkpoints=False,
    ),
}

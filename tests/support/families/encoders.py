"""Tiny encoders of text."""

from __future__ import annotations

from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    NomicBertConfig,
    NomicBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
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
    "xlm-roberta": Tiny(
        lambda: XLMRobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=1,
        ),
        XLMRobertaForSequenceClassification,
        padding=1,
    ),
    "camembert": Tiny(
        lambda: CamembertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=1,
        ),
        CamembertForSequenceClassification,
        padding=1,
    ),
    # Its tokens are narrower than its layers, as in ELECTRA-small.
    "electra": Tiny(
        lambda: ElectraConfig(
            vocab_size=VOCABULARY,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        ElectraForSequenceClassification,
    ),
    # The second layer sees two tokens to either side, the others see all.
    "modernbert": Tiny(
        lambda: ModernBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            local_attention=4,
            global_attn_every_n_layers=2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        ),
        ModernBertForSequenceClassification,
        refuses={"bitfit": "bias"},
    ),
    # Heads hold queries, keys and values side by side: only the whole projection is a site.
    "deberta": Tiny(
        lambda: DebertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            type_vocab_size=0,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["c2p", "p2c"],
            max_relative_positions=8,
        ),
        DebertaForSequenceClassification,
        attentions=("eager",),
        refuses={"lora-all": "qkv"},
    ),
    # As DeBERTa-v3 is: relative positions in few buckets, projected by the maps of contents, and normalised.
    "deberta-v2": Tiny(
        lambda: DebertaV2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            type_vocab_size=0,
            relative_attention=True,
            position_biased_input=False,
            pos_att_type=["p2c", "c2p"],
            position_buckets=6,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
        ),
        DebertaV2ForSequenceClassification,
        attentions=("eager",),
    ),
    # One layer that runs three times.
    "albert": Tiny(
        lambda: AlbertConfig(
            vocab_size=VOCABULARY,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        AlbertForSequenceClassification,
        checkpoints=False,
        refuses={"lpt": "has 1 in its encoder"},
    ),
    "nomic_bert": Tiny(
        lambda: NomicBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        NomicBertForSequenceClassification,
    ),
}

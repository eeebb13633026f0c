"""Tiny language models with a head, a word-level tokenizer with a mask, and texts that they can classify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from support.saved_model import BAD, GOOD, NEUTRAL

__all__ = ["MASKED", "NAMES", "TEMPLATES", "WORDS", "cloze_tokenizer", "save_causal", "save_masked"]

WORDS = "bad,good"
NAMES = ("no", "yes")
MASKED = {"bert": True, "llama": False}
TEMPLATES = {"bert": "{text} It was {mask} .", "llama": "{text} It was"}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MORE = ("It", "?", ".", ",", "Answer", ":")


def cloze_tokenizer(*, masked: bool = True) -> PreTrainedTokenizerFast:
    """Words and special tokens are one token each; rows of a masked model begin and end with special ones,
    and those of a decoder begin with one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate((*_SPECIAL, *GOOD, *BAD, *NEUTRAL, *_MORE))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]" if masked else "[CLS] $A",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if masked else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=48,
        model_input_names=names,
        **({"mask_token": "[MASK]"} if masked else {}),
    )


def save_masked(folder: Path, *, head: bool = True, seed: int = 0) -> Path:
    """Write a BERT of 3 layers that predicts tokens at masks, without its `head` where that is wanted."""
    tokenizer = cloze_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return _saved(folder, lambda: BertForMaskedLM(config), tokenizer, seed, head=head)


def save_causal(folder: Path, *, head: bool = True, seed: int = 0, **changes: Any) -> Path:
    """Write a Llama of 3 layers, whose head is a map of its own."""
    tokenizer = cloze_tokenizer(masked=False)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = LlamaConfig(**{**sizes, **changes})
    return _saved(folder, lambda: LlamaForCausalLM(config), tokenizer, seed, head=head)


def _saved(folder: Path, make: Any, tokenizer: PreTrainedTokenizerFast, seed: int, *, head: bool) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = make()
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.tie_weights()
        (model if head else model.base_model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

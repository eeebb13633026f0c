"""Tokenizers of the usual sorts with a handful of pieces."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def fast(inner: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **options)


def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, pieces, special tokens at both ends."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "un",
        "##happy",
        "happy",
        "ann",
        "can",
        "'",
        "t",
        "stay",
        "!",
    ]
    inner = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return fast(inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def bytes_with_spaces(*, prefix: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's and RoBERTa's: bytes, and a word's first token holds the space before it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "n"), ("h", "a"), ("Ġ", "s"), ("Ġ", "A"), ("Ġs", "t"), ("Ġ", "un")]
    pieces = ["<pad>", *letters, *("".join(pair) for pair in merges)]
    inner = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    inner.decoder = decoders.ByteLevel()
    return fast(inner, pad_token="<pad>")


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As T5's: a mark for each space, also before the first word, and an end token."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁stay", "▁un", "happy", "▁Ann", "▁can", "'", "t", "!", "▁happy"]
    inner = Tokenizer(models.Unigram([(p, -1.0 - i / 10) for i, p in enumerate(pieces)], unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return fast(inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def letters_with_marks(template: str) -> PreTrainedTokenizerFast:
    """As Llama 2's: letters, a mark for each space and one before each text; a mark and a y are one token."""
    pieces = ["<unk>", "</s>", "\n", "▁", *"<|>abcdefghijklmnopqrstuvwxyz", "▁y"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, [("▁", "y")], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    options = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": template}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=256, **options)

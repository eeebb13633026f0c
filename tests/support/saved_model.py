"""A tiny backbone with a tokenizer in a folder, a data file that it can learn, and a small search of both."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

GOOD, BAD, NEUTRAL = ("good", "fine", "great"), ("bad", "poor", "dull"), ("film", "the", "a", "story", "was")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def save_backbone(folder: Path, *, seed: int = 0, biases: float = 0.0, **changes: Any) -> Path:
    """Write a BERT of 3 layers, or of `changes`, with a word-level tokenizer; returns the folder.

    `biases` is the standard deviation of its biases, which a pretrained backbone has and a new one has not.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate((*_SPECIAL, *GOOD, *BAD, *NEUTRAL))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    config = BertConfig(**{**sizes, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config)
        for name, parameter in model.base_model.named_parameters():
            if biases and name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=biases)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_reviews(path: Path, rows: int = 120) -> Path:
    """Write a CSV with the columns `body` and `verdict`; the verdict follows from one word of the body."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body", "verdict"])
        for i in range(rows):
            words = [*draw.choices(NEUTRAL, k=draw.randint(2, 6)), draw.choice(GOOD if i % 2 else BAD)]
            draw.shuffle(words)
            writer.writerow(
                [f"{' '.join(words)} {'the ' * (i % 7)}{'film ' * (i // 7 % 11)}", "yes" if i % 2 else "no"]
            )
    return path


def small_search(folder: Path, **more: Any) -> dict[str, Any]:
    """Arguments of a search for LoRA, with its run in a folder, where backbone and data are written."""
    return {
        "task": str(write_reviews(folder / "data.csv")),
        "text": "body",
        "label": "verdict",
        "budget": "20%",
        "space": "lora",
        "model": str(save_backbone(folder / "model")),
        "confirm": 1,
        "confirm_seeds": 1,
        "max_length": 16,
        "batch_size": 8,
        "pooling": "own",
        "out": str(folder / "run"),
        **more,
    }


@contextmanager
def reviews_in(folder: Path) -> Iterator[None]:
    """Work in a folder with a backbone (`model`), reviews (`reviews.csv`) and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOPEFT_CACHE", str(folder / "cache"))
        save_backbone(folder / "model")
        write_reviews(folder / "reviews.csv")
        yield

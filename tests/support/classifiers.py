"""Tiny sequence classifiers of many families, and an encoded split for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from autopeft.tasks.encode import EncodedSplit, EncodedTask
from autopeft.tasks.task import Source, Split, Task

from . import families
from .families import VOCABULARY
from .tiny import EAGER, tiny_config

__all__ = [
    "DECODERS",
    "FAMILIES",
    "LAYERS",
    "WITH_DECODERS",
    "classifier",
    "encoded_rows",
    "encoded_rows_task",
]

LAYERS = 3
# ELECTRA projects its embeddings to another width.
FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "electra", "gpt2", "llama", "gemma2", "t5")
# Fused maps, sub-layers side by side, norms behind them, states without a batch, experts, other attention.
DECODERS = ("phi", "phi3", "gpt_neox", "opt", "falcon", "bloom", "olmo2", "mixtral", "gpt_oss")
WITH_DECODERS = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in DECODERS)]
END = 2


def _config(name: str) -> PreTrainedConfig:
    config = tiny_config(name)
    config.eos_token_id = END
    return config


def classifier(name: str, *, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    """A tiny classifier over two classes, in eval mode, its weights large enough that layers matter."""
    config = _config(name)
    config.num_labels = 2
    config._attn_implementation = "eager" if name in EAGER else attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                # T5 does not scale its scores: random ones would be so sharp that rounding decides.
                sharp = name == "t5" and key.endswith(".q.weight")
                torch.nn.init.normal_(parameter, std=0.05 if sharp else 0.15)
            elif "bias" in key:
                torch.nn.init.normal_(parameter, std=0.1)
    found: PreTrainedModel = model.eval()
    return found


def encoded_rows(name: str, rows: int = 12, seed: int = 0) -> EncodedSplit:
    """Rows of 3 to 12 tokens that end with `END`; the label says whether token 7 is among them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, size=rows)
    texts = [np.append(rng.integers(8, VOCABULARY, size=n - 1), END) for n in lengths]
    labels = rng.integers(0, 2, size=rows)
    for text, label in zip(texts, labels, strict=True):
        if label:
            text[rng.integers(0, len(text) - 1)] = 7
    return EncodedSplit(
        ids=np.concatenate(texts).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        types=None,
        labels=labels.astype(np.int64),
        kind="classification",
        pad_id=families.FAMILIES[name].padding if name in families.FAMILIES else 0,
        pad_type=0,
        max_length=16,
    )


def encoded_rows_task(name: str, rows: int = 24) -> EncodedTask:
    """A task whose three splits are made like `encoded_rows`."""
    splits = {s: encoded_rows(name, rows, seed) for seed, s in enumerate(("train", "select", "test"))}
    texts = {s: Split([""] * rows, None, list(e.labels)) for s, e in splits.items()}  # type: ignore[arg-type]
    source = Source("file", "toy", "0" * 64)
    task = Task("toy", "classification", ("no", "yes"), texts, "accuracy", None, source)  # type: ignore[arg-type]
    return EncodedTask(task, splits, 16)  # type: ignore[arg-type]

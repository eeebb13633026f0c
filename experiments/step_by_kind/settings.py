"""For each kind of task: rows, a backbone, and how the Trainer pads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lib.trec_rows import made_of
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    default_data_collator,
)

from autopeft import load_task
from autopeft.assets import load_tokenizer, resolve_model
from autopeft.tasks import Rows, Task

__all__ = ["SETTINGS", "Setting", "random_t5", "random_vit"]

ENCODER, DECODER = "minilm", "smollm2-135m"


@dataclass(frozen=True)
class Setting:
    """What a kind of task is measured on.

    Attributes:
        task: makes the rows, given how many are to be had for training.
        model: the name of a backbone, or what makes one in a folder.
        collator: pads rows as transformers documents it, given the tokenizer or the image processor.
        labels: the arguments of the model's forward that are labels; ours are the columns of `labels` where
            there are several.
    """

    task: Callable[[int], Task]
    model: str | Callable[[Path], Path]
    collator: Callable[[Any], Any] = DataCollatorWithPadding
    labels: tuple[str, ...] = ("labels",)


def random_t5(folder: Path) -> Path:
    """A T5 of 4 + 4 layers of 256 with the default encoder's tokenizer. Its weights are random: a step costs
    what it costs with learnt ones."""
    tokenizer = load_tokenizer(resolve_model(ENCODER))
    config = T5Config(
        vocab_size=len(tokenizer), d_model=256, d_kv=32, d_ff=1024, num_layers=4, num_heads=8,
        pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    tokenizer.eos_token = tokenizer.sep_token
    tokenizer.save_pretrained(folder)
    return folder


def random_vit(folder: Path) -> Path:
    """A ViT of 6 layers of 128 for images of 28 × 28 in patches of 4 × 4; its weights are random."""
    config = ViTConfig(
        hidden_size=128, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512, image_size=28,
        patch_size=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def _as_they_are(processor: Any) -> Callable[[Any], Any]:
    """Images have one size and need no padding."""
    return default_data_collator


def _packaged(name: str, rows: int) -> Task:
    return load_task(name).subset(train=rows, select=32, test=32)


def _made(kind: str, rows: int) -> Task:
    """Rows of this kind, made of the questions of `trec`."""
    import pandas

    frame = pandas.DataFrame(made_of(_packaged("trec", rows + 200), kind))
    return load_task(frame, kind=kind, rows=Rows(rows, 32, 32))


SETTINGS: Mapping[str, Setting] = {
    "classification": Setting(partial(_packaged, "trec"), ENCODER),
    "regression": Setting(partial(_made, "regression"), ENCODER),
    "multi_label": Setting(partial(_made, "multi_label"), ENCODER),
    "token_classification": Setting(
        partial(_packaged, "swapped-words"), ENCODER, DataCollatorForTokenClassification
    ),
    "question_answering": Setting(
        partial(_packaged, "inserted-words"), ENCODER, labels=("start_positions", "end_positions")
    ),
    "image_classification": Setting(partial(_packaged, "mnist-5-to-9"), random_vit, _as_they_are),
    "seq2seq": Setting(partial(_packaged, "tatoeba-en-es"), random_t5, DataCollatorForSeq2Seq),
    "causal_lm": Setting(partial(_packaged, "gym:chain_sum"), DECODER, DataCollatorForSeq2Seq),
    "multiple_choice": Setting(partial(_made, "multiple_choice"), DECODER, DataCollatorForSeq2Seq),
}

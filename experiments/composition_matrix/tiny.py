"""The tiny models of the matrix, each with rows of its kind of task.

Weights and texts are random. Texts go through the library's own encoding, so that each kind has the batches
that it has in use.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from autopeft.hybrid import attach
from autopeft.recipe import Recipe
from autopeft.tasks import Task
from autopeft.tasks.encode import EncodedTask, encode
from autopeft.tasks.kinds import get_kind
from autopeft.tasks.task import Source, Split, SplitName

__all__ = ["MODELS", "SOURCE", "Tiny", "data_of", "runs_with_prompt"]

_VOCABULARY, _LONGEST = 40, 16
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
_TOLD = "w7"
"""The word that a class tells of."""
_ROWS: dict[SplitName, int] = {"train": 24, "select": 8, "test": 8}

_ONE_STACK: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": _VOCABULARY, "max_position_embeddings": 96, "pad_token_id": 0,
}  # fmt: skip
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _ONE_STACK,
    "llama": {**_ONE_STACK, "eos_token_id": 3},
    "t5": {
        "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": _VOCABULARY,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3,
    },
}  # fmt: skip


# Models
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiny:
    """A tiny model for a kind of task.

    Attributes:
        every_pair: whether every pair of methods is tried on it, or one pair of each class.
    """

    architecture: str
    kind: str
    every_pair: bool = False

    @property
    def name(self) -> str:
        return f"{self.architecture} {self.kind}"

    def model(self) -> PreTrainedModel:
        """The model, in eval mode, always with the same weights."""
        kind = get_kind(self.kind)
        told = {"num_labels": 2} if kind.new_head else {}
        config = AutoConfig.for_model(self.architecture, **_SIZES[self.architecture], **told)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model: PreTrainedModel = kind.auto_class.from_config(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        parameter.mul_(5.0)  # so that nothing is lost in rounding
                    else:  # some methods read biases, which are zero
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()


MODELS = {
    tiny.name: tiny
    for tiny in (
        Tiny("bert", "classification", every_pair=True),
        Tiny("llama", "classification", every_pair=True),
        Tiny("llama", "causal_lm"),
        Tiny("t5", "seq2seq"),
        Tiny("llama", "multiple_choice"),
    )
}


# What a method starts from
# ---------------------------------------------------------------------------------------------------------

SOURCE = {"source": {"run": "prompt"}}
"""As a recipe's `inputs`: a prompt of 4 rows of width 16, in the folder that `runs_with_prompt` gives."""


def runs_with_prompt() -> Path:
    """A folder of runs with the one of `SOURCE`, which lasts as long as the process."""
    return Path(_runs().name)


@cache
def _runs() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="composition-matrix-")
    recipe = Recipe.from_dict({"name": "prompt", "model": [{"prompt_tuning": {"length": 4}}]})
    with attach(MODELS["bert classification"].model(), recipe, seed=0) as hybrid:
        hybrid.save(Path(folder.name) / "prompt" / "winner")
    return folder


# Rows
# ---------------------------------------------------------------------------------------------------------


@cache
def data_of(kind: str) -> EncodedTask:
    """Rows of random words with answers of a kind."""
    splits = {name: _MADE[kind](*_words(rows, seed)) for seed, (name, rows) in enumerate(_ROWS.items())}
    labels = ("no", "yes") if kind == "classification" else ()
    # A metric of what is written is a reward too, for methods that learn from some.
    metric = next((m for m in get_kind(kind).metrics if m.generated), None)
    measured = get_kind(kind).default_metric if metric is None else metric.name
    task = Task("random", kind, labels, splits, measured, None, Source("memory", "random", "0" * 64))
    return encode(task, _tokenizer(), _LONGEST)


def _words(rows: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """Texts, an answer to each, and whether the text has a certain word."""
    rng = np.random.default_rng(seed)

    def some(least: int, most: int) -> list[list[str]]:
        return [
            [f"w{word}" for word in rng.integers(8, _VOCABULARY, size=count)]
            for count in rng.integers(least, most, size=rows)
        ]

    texts, answers = some(3, 11), some(1, 4)
    told = rng.integers(0, 2, size=rows).tolist()
    for text, label in zip(texts, told, strict=True):
        if label:
            text[rng.integers(0, len(text))] = _TOLD
    return [" ".join(text) for text in texts], [" ".join(answer) for answer in answers], told


def _classes(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(texts, None, told)


def _conversations(texts: list[str], answers: list[str], told: list[int]) -> Split:
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        for text, answer in zip(texts, answers, strict=True)
    ]
    return Split(texts, None, answers, {"messages": turns})


def _targets(texts: list[str], answers: list[str], told: list[int]) -> Split:
    return Split(texts, None, answers)


def _choices(texts: list[str], answers: list[str], told: list[int]) -> Split:
    others = [*answers[1:], answers[0]]
    pairs = [[own, other] for own, other in zip(answers, others, strict=True)]
    return Split(texts, None, told, {"choices": pairs})


_MADE: dict[str, Callable[[list[str], list[str], list[int]], Split]] = {
    "classification": _classes,
    "causal_lm": _conversations,
    "seq2seq": _targets,
    "multiple_choice": _choices,
}


def _tokenizer() -> PreTrainedTokenizerFast:
    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), _VOCABULARY))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>",
        model_max_length=96, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip

"""The tiny models of the matrix, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lib.tiny_rows import END, WORDS, kind_of_two
from transformers import AutoConfig, PreTrainedModel

from autopeft.tasks.kinds import get_kind

__all__ = ["MODELS", "Tiny"]

_ONE_STACK: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": WORDS, "max_position_embeddings": 96, "pad_token_id": 0,
}  # fmt: skip
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _ONE_STACK,
    "llama": {**_ONE_STACK, "eos_token_id": END},
    "t5": {
        "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": WORDS,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": END,
    },
}  # fmt: skip


# Models
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiny:
    """A tiny model for a kind of task.

    Attributes:
        of_one: the kind of the task, or of each where there are two.
        every_pair: whether every pair of methods is tried on it, or one pair of each class.
        two_tasks: whether its rows are of two tasks. Pairs are tried of which one acts by the task of a row.
    """

    architecture: str
    of_one: str
    every_pair: bool = False
    two_tasks: bool = False

    @property
    def name(self) -> str:
        return f"{self.architecture} {self.of_one}{', two tasks' if self.two_tasks else ''}"

    @property
    def kind(self) -> str:
        return kind_of_two(self.of_one) if self.two_tasks else self.of_one

    def model(self) -> PreTrainedModel:
        """The model, in eval mode, always with the same weights."""
        kind = get_kind(self.of_one)
        told = {"num_labels": 2} if kind.head.new_head else {}
        config = AutoConfig.for_model(self.architecture, **_SIZES[self.architecture], **told)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model: PreTrainedModel = kind.head.auto_class.from_config(config)
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
        Tiny("t5", "seq2seq", two_tasks=True),
    )
}

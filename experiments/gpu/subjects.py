"""The backbones and tasks that are measured on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from autopeft.assets import load_tokenizer, resolve_model

__all__ = ["SUBJECTS", "TARGETS", "Subject", "random_qwen3"]

# Modules that peft's LoRA is put on as our `q` and `v`, by type of model.
TARGETS = {
    "bert": ["query", "value"],
    "mpnet": ["attn.q", "attn.v"],
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
}


@dataclass(frozen=True)
class Subject:
    """A backbone, a task for it, and the batches that it is trained with."""

    name: str
    model: str
    task: str
    kind: str
    batch_size: int = 32
    max_length: int = 128


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("minilm", "minilm", "movie-sentences", "classification"),
        Subject("mpnet-base", "mpnet-base", "movie-sentences", "classification"),
        Subject("smollm2-135m", "smollm2-135m", "gym:chain_sum", "causal_lm", 16),
        Subject("qwen3-0.6b-random", "", "gym:chain_sum", "causal_lm", 16),
    )
}
"""The last has no weights: `random_qwen3` makes some, as speed does not ask what a model knows."""


def random_qwen3(folder: Path) -> str:
    """A Qwen3 of 0.6 billion random parameters, in bf16, with the tokenizer of SmolLM2; its folder."""
    if not (folder / "model.safetensors").exists():
        tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
        config = Qwen3Config(
            hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
            head_dim=128, intermediate_size=3072, vocab_size=151_936, tie_word_embeddings=True,
            max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)

"""Tiny decoders, a word-level tokenizer with a chat template, and conversations that they can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["TEMPLATE", "WORDS", "chats", "save_decoder", "word_tokenizer", "write_chats"]

WORDS = ("what", "follows", "is", "one", "two", "three", "four", "five", "be", "brief", "user", "assistant")
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|start|>", "<|end|>", "system")
TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m.role }} {{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)
_NEXT = dict(zip(WORDS[3:8], (*WORDS[4:8], WORDS[3]), strict=True))


def word_tokenizer(template: str | None = TEMPLATE, **changes: Any) -> PreTrainedTokenizerFast:
    """Words and special tokens are one token each; everything else is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*_SPECIAL, *WORDS))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    options: dict[str, Any] = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    options |= {"model_max_length": 64, **changes}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **options)


def save_decoder(
    folder: Path,
    *,
    template: str | None = TEMPLATE,
    seed: int = 0,
    vocabulary: int | None = None,
    positions: int = 64,
) -> Path:
    """Write a Llama of 3 layers with the tokenizer; returns the folder. A `vocabulary` larger than the
    tokenizer's makes shares of the parameters larger."""
    tokenizer = word_tokenizer(template, model_max_length=positions)
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # of a new head's own size no adapter could move the logits
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chats(rows: int = 60) -> list[list[dict[str, str]]]:
    """Conversations whose answer is the number after the one that is asked for; every third has two turns."""
    numbers = list(_NEXT)
    found = []
    for i in range(rows):
        number = numbers[i % 5]
        turn = [
            {"role": "user", "content": f"what {'is ' * (i // 5 % 8)}follows {number}"},
            {"role": "assistant", "content": _NEXT[number]},
        ]
        system = [{"role": "system", "content": "be brief"}] if i % 4 == 0 else []
        again = [
            {"role": "user", "content": f"what follows {_NEXT[number]}"},
            {"role": "assistant", "content": _NEXT[_NEXT[number]]},
        ]
        found.append([*system, *turn, *(again if i % 3 == 0 else [])])
    return found


def write_chats(path: Path, rows: int = 60) -> Path:
    """Write the conversations as JSON lines with the column `messages`."""
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in chats(rows)))
    return path

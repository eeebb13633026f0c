"""Tiny language models, a word-level tokenizer with a chat template, and rows that they can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from autopeft.hybrid import Hybrid
from autopeft.tasks import EncodedTask
from autopeft.training.forward import Forward

__all__ = [
    "TEMPLATE",
    "WORDS",
    "chats",
    "count_tokens",
    "encoder_decoder",
    "loss_and_gradients",
    "pairs",
    "save_decoder",
    "save_encoder_decoder",
    "side_tokenizer",
    "word_tokenizer",
    "write_chats",
    "write_pairs",
]

WORDS = ("what", "follows", "is", "one", "two", "three", "four", "five", "be", "brief", "user", "assistant")
_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<|start|>", "<|end|>", "system")
TEMPLATE = (
    "{% for m in messages %}<|start|> {{ m.role }} {{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|> assistant {% endif %}"
)
_NEXT = dict(zip(WORDS[3:8], (*WORDS[4:8], WORDS[3]), strict=True))


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by how many tokens each lookup of embeddings gets."""
    found: list[int] = []
    plain = torch.nn.Embedding.forward

    def counted(module: torch.nn.Embedding, ids: Tensor) -> Tensor:
        found.append(ids.numel())
        return plain(module, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", counted)
    return found


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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():  # of a new head's own size no adapter could move the logits
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def side_tokenizer(**changes: Any) -> PreTrainedTokenizerFast:
    """The same words without a template; as T5's it ends each text with the end token."""
    from tokenizers import processors

    found = word_tokenizer(None, **changes)
    inner = found.backend_tokenizer
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 3)])
    return found


def encoder_decoder(name: str, *, seed: int = 0, vocabulary: int | None = None) -> PreTrainedModel:
    """A T5 (its head tied and scaled) or BART of 3 + 3 layers for the tokenizer's words, in eval mode."""
    common: dict[str, Any] = {"vocab_size": vocabulary or len(side_tokenizer()), "d_model": 32}
    common |= {"pad_token_id": 0, "eos_token_id": 3, "dropout_rate" if name == "t5" else "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if name == "t5":
            sizes = {"d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
            model = T5ForConditionalGeneration(T5Config(**common, **sizes, tie_word_embeddings=True))
        else:
            sizes = {f"{side}_{what}": n for side in ("encoder", "decoder")
                     for what, n in (("layers", 3), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
            sizes |= {"max_position_embeddings": 64, "decoder_start_token_id": 3, "bos_token_id": 2}
            model = BartForConditionalGeneration(BartConfig(**common, **sizes, forced_eos_token_id=None))
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:  # T5 does not divide its scores by the root of the head's width
                torch.nn.init.normal_(
                    parameter, std=0.05 if name == "t5" and key.endswith("q.weight") else 0.2
                )
        if name == "t5":  # its head divides by the root of the width
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
        model.tie_weights()
    return model.eval()


def save_encoder_decoder(folder: Path, name: str = "t5", **options: Any) -> Path:
    """Write such a model with its tokenizer; returns the folder."""
    encoder_decoder(name, **options).save_pretrained(folder)
    side_tokenizer().save_pretrained(folder)
    return folder


def pairs(rows: int = 60) -> tuple[list[str], list[str]]:
    """Sources of many lengths and their targets: the number that follows, and where it is not to be brief the
    one after it."""
    numbers = list(_NEXT)
    sources, targets = [], []
    for i in range(rows):
        number, brief = numbers[i % 5], i % 2 == 1
        sources.append(f"{'be brief ' if brief else ''}what {'is ' * (i // 10 % 16)}follows {number}")
        targets.append(_NEXT[number] if brief else f"{_NEXT[number]} {_NEXT[_NEXT[number]]}")
    return sources, targets


def write_pairs(path: Path, rows: int = 60, names: tuple[str, str] = ("source", "target")) -> Path:
    """Write them as JSON lines."""
    made = zip(*pairs(rows), strict=True)
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in made))
    return path


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


def loss_and_gradients(
    hybrid: Hybrid, forward: Forward, data: EncodedTask
) -> tuple[float, dict[str, Tensor]]:
    """The loss of all rows of *select* in one batch, and its gradients by name."""
    (batch,) = forward.batches(data.select, 99, shuffle=False, device=torch.device("cpu"))
    loss = data.task.loss().mean(forward(batch), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {n: p.grad.clone() for n, p in hybrid.model.named_parameters() if p.grad is not None}
    hybrid.model.zero_grad()
    return float(loss.detach()), found

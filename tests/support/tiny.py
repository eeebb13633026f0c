"""Tiny randomly initialised models of every architecture with a site map, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

VOCABULARY = 50
ARCHITECTURES = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart", "vit", "mpnet")
EAGER = ("mpnet",)  # their attention calls no other function, and a model that wants one is refused
PADDED_WITH_1 = ("roberta", "mpnet")
ENCODER_DECODERS = ("t5", "bart")
DECODERS = ("gpt2", "llama", *ENCODER_DECODERS)


@dataclass(frozen=True)
class Tiny:
    """A tiny model's config and class."""

    config: Callable[[], PreTrainedConfig]
    model: type[PreTrainedModel]


_TINY = {
    "bert": Tiny(
        lambda: BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        ),
        BertForSequenceClassification,
    ),
    "roberta": Tiny(
        lambda: RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
            type_vocab_size=1,
        ),
        RobertaForSequenceClassification,
    ),
    "distilbert": Tiny(
        lambda: DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=64
        ),
        DistilBertForSequenceClassification,
    ),
    "mpnet": Tiny(
        lambda: MPNetConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=66,
        ),
        MPNetForSequenceClassification,
    ),
    "gpt2": Tiny(
        lambda: GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=3,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        GPT2LMHeadModel,
    ),
    "llama": Tiny(
        lambda: LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        ),
        LlamaForCausalLM,
    ),
    "t5": Tiny(
        lambda: T5Config(
            vocab_size=VOCABULARY,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=3,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
        ),
        T5ForConditionalGeneration,
    ),
    "bart": Tiny(
        lambda: BartConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        BartForConditionalGeneration,
    ),
    "vit": Tiny(
        lambda: ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=8,
            patch_size=4,
            num_labels=3,
        ),
        ViTForImageClassification,
    ),
}


def tiny_config(name: str) -> PreTrainedConfig:
    """The tiny config of an architecture."""
    return _TINY[name].config()


def tiny_model(name: str, *, seed: int = 0, attention: str = "sdpa", **kwargs: Any) -> PreTrainedModel:
    """A tiny model in eval mode, its weights large enough that layers matter (a fresh init barely moves the
    logits)."""
    config = tiny_config(name)
    config._attn_implementation = "eager" if name in EAGER else attention
    for key, value in kwargs.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _TINY[name].model(config)
        for key, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.15)
            elif "bias" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        if hasattr(model, "tie_weights"):
            model.tie_weights()
    return model.eval()


def tiny_inputs(
    name: str, *, batch: int = 2, length: int = 7, pad: int = 0, seed: int = 1
) -> dict[str, Tensor]:
    """Inputs for a tiny model; `pad` columns of padding on the right (text)."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    if pad:
        fill = 1 if name in PADDED_WITH_1 else 0
        ids = torch.cat([ids, ids.new_full((batch, pad), fill)], dim=1)
        mask = torch.cat([mask, mask.new_zeros(batch, pad)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in ENCODER_DECODERS:
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (batch, 5), generator=generator)
    return inputs


def logits(model: PreTrainedModel, inputs: dict[str, Tensor], *, length: int | None = None) -> Tensor:
    """The model's logits; of decoders only the first `length` positions (what stands at padding means
    nothing)."""
    out: Tensor = model(**inputs).logits
    if length is not None and out.ndim == 3 and "decoder_input_ids" not in inputs:
        out = out[:, :length]
    return out


def randomise(module: torch.nn.Module, *, std: float = 0.1, seed: int = 2) -> None:
    """Random values for every parameter: LoRA's A has no gradient while B is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)


def snapshot(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of every tensor of a model."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


class LogitsObjective:
    """A loss for calibration: the squared logits of one batch (see `autopeft.method.Objective`)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return out if out.ndim == 2 else out[:, -1]

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(self.logits(batch), batch["labels"])

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(self.logits(batch), batch["labels"], reduction="none")

    def gradients(self, batch: dict[str, Tensor], wanted: Sequence[torch.nn.Parameter]) -> list[Tensor]:
        found = torch.autograd.grad(self(batch), wanted, allow_unused=True, materialize_grads=True)
        return list(found)

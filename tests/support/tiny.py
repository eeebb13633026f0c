"""Tiny randomly initialised models of every family with a site map, and inputs for them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from . import families
from .families import FAMILIES, VOCABULARY

# What holds for every method is tried on these; on the other families some ways of composing are.
ARCHITECTURES = ("bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart", "vit", "mpnet")
OTHERS = tuple(name for name in FAMILIES if name not in ARCHITECTURES)
EAGER = tuple(name for name, tiny in FAMILIES.items() if "sdpa" not in tiny.attentions)
ENCODER_DECODERS = tuple(name for name in ARCHITECTURES if name in families.ENCODER_DECODERS)
DECODERS = (*(name for name in ARCHITECTURES if name in families.DECODERS), *ENCODER_DECODERS)


def tiny_config(name: str) -> PreTrainedConfig:
    """The tiny config of an architecture."""
    return FAMILIES[name].config()


def tiny_model(name: str, *, seed: int = 0, attention: str = "sdpa", **kwargs: Any) -> PreTrainedModel:
    """A tiny model in eval mode, its weights large enough that layers matter (a fresh init barely moves the
    logits)."""
    return _kept(name, seed, attention, json.dumps(kwargs)).copy()


class _Kept(pickle.Pickler):
    """A model of which copies are made: a tenth of what `copy.deepcopy` takes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.file, self.tensors = io.BytesIO(), list[Tensor]()
        super().__init__(self.file)
        self._numbers: dict[int, int] = {}
        self.dump(model)

    def persistent_id(self, found: Any) -> int | None:
        if not isinstance(found, Tensor):
            return None
        if id(found) not in self._numbers:
            self._numbers[id(found)] = len(self.tensors)
            self.tensors.append(found)
        return self._numbers[id(found)]

    def copy(self) -> PreTrainedModel:
        model: PreTrainedModel = _Copy(self.file.getvalue(), self.tensors).load()
        return model


class _Copy(pickle.Unpickler):
    def __init__(self, data: bytes, tensors: Sequence[Tensor]) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = [
            torch.nn.Parameter(t.detach().clone(), t.requires_grad)
            if isinstance(t, torch.nn.Parameter)
            else t.clone()
            for t in tensors
        ]

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


@lru_cache(maxsize=100)
def _kept(name: str, seed: int, attention: str, changes: str) -> _Kept:
    return _Kept(_made(name, seed, attention, changes))


def _made(name: str, seed: int, attention: str, changes: str) -> PreTrainedModel:
    config = tiny_config(name)
    config._attn_implementation = "eager" if name in EAGER else attention
    for key, value in json.loads(changes).items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[name].model(config)
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
    if FAMILIES[name].modality == "vision":
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    if FAMILIES[name].modality == "audio":
        written = torch.randint(3, VOCABULARY, (batch, 5), generator=generator)
        return {
            "input_features": torch.randn(batch, 8, 12, generator=generator),
            "decoder_input_ids": written,
        }
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    if pad:
        ids = torch.cat([ids, ids.new_full((batch, pad), FAMILIES[name].padding)], dim=1)
        mask = torch.cat([mask, mask.new_zeros(batch, pad)], dim=1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name in families.ENCODER_DECODERS:
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
            drawn = torch.randn(parameter.shape, generator=generator)  # the same on every device
            parameter.add_(drawn.to(parameter.device) * std)


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

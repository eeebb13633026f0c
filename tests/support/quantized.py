"""A quantised model that needs no library: linear maps in four bits, two values in each byte."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["FOUR_BITS", "Hidden", "Packed", "dequantised", "quantised", "unpacked"]

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


class Packed(nn.Linear):
    """As bitsandbytes' linear map of four bits: its `weight` (in·out/2, 1) holds bytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        weight = linear.weight.detach()
        self.register_buffer("scales", weight.abs().amax(dim=1, keepdim=True) / 7)
        levels = ((weight / self.scales).round().clamp(-7, 7) + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter((levels[::2] * 16 + levels[1::2])[:, None], requires_grad=False)
        self.bias = linear.bias

    def unpacked(self) -> Tensor:
        """The weight (out, in) that it computes with."""
        packed = self.weight[:, 0]
        levels = torch.stack([packed // 16, packed % 16], dim=1).flatten().float() - 8
        found: Tensor = levels.view(self.out_features, self.in_features) * self.scales
        return found

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.unpacked(), self.bias)


class Hidden(nn.Module):
    """As GPTQ's linear map: it has no `weight` at all."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.inner = Packed(linear)
        self.register_buffer("qweight", self.inner._parameters.pop("weight"))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def quantised(model: PreTrainedModel, kind: type[Any] = Packed) -> PreTrainedModel:
    """The model with all linear maps of its layers quantised, and marked as transformers does it."""
    for name, module in list(model.base_model.encoder.named_modules()):
        if isinstance(module, nn.Linear):
            owner, _, leaf = name.rpartition(".")
            setattr(model.base_model.encoder.get_submodule(owner), leaf, kind(module))
    config = dict(FOUR_BITS)
    model.hf_quantizer = SimpleNamespace(quantization_config=config)  # type: ignore[assignment]
    model.config.quantization_config = config
    return model


def dequantised(model: PreTrainedModel, into: PreTrainedModel) -> PreTrainedModel:
    """`into`, a model of the same architecture, with the weights that a quantised one computes with."""
    state = {}
    for name, value in model.state_dict().items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Packed):
            if name.endswith(".scales"):
                continue
            value = owner.unpacked() if name.endswith(".weight") else value
        state[name] = value
    into.load_state_dict(state)
    return into


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of what a library quantised, with the weights that it computes with in plain maps."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or type(weight) is nn.Parameter:
            continue
        plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
        plain.weight = nn.Parameter(_full(weight).float(), requires_grad=False)
        plain.bias = module.bias
        owner, _, leaf = name.rpartition(".")
        setattr(copied.get_submodule(owner), leaf, plain.eval())
    copied.hf_quantizer = None  # type: ignore[assignment]
    return copied


def _full(weight: Any) -> Tensor:
    if hasattr(weight, "quant_state"):
        import bitsandbytes.functional

        found: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found
    found = weight.dequantize()
    return found

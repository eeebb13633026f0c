"""Backbones in 8 or 4 bits: how they are recognised, and what is refused on them.

What reads or changes weights would read packed numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from autopeft.errors import UsageError

__all__ = ["is_packed", "keep_differentiable", "quantization_in", "quantization_of", "unquantized"]

C = TypeVar("C")
_PACKS_AGAIN = "support_avx512bf16_for_cpu"  # of bitsandbytes' linear maps
_BITS = ("bits", "nbits", "w_bit", "weight_bits")
_PACKAGES = ("torchao", "bitsandbytes", "hqq", "optimum", "gptqmodel", "awq")


def quantization_in(config: Any) -> str | None:
    """How the weights of a configuration's checkpoint are quantised (`bitsandbytes, 4 bits`); `None` where
    they are not."""
    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None)
        if settings:
            return _words(settings if isinstance(settings, Mapping) else settings.to_dict())
    return None


def quantization_of(model: PreTrainedModel) -> str | None:
    """How the weights of a live model are quantised; `None` where they are not, or are no more."""
    if getattr(model, "hf_quantizer", None) is not None:
        return quantization_in(model.config) or "by transformers"
    for name, parameter in model.base_model.named_parameters():
        if name.startswith("autopeft."):
            continue
        if is_packed(parameter):
            return _package(parameter) or str(parameter.dtype).removeprefix("torch.")
    return None


def is_packed(tensor: Tensor) -> bool:
    """Whether a tensor holds something else than numbers of at least 16 bits to compute with."""
    return bool(_package(tensor)) or not tensor.is_floating_point() or tensor.element_size() < 2


def keep_differentiable(model: nn.Module) -> None:
    """Keep bitsandbytes from packing its weights anew. On processors with AVX-512 BF16 it does so in a map's
    first forward without gradients, for a product that rounds to 16 bits and lets no gradient through, then
    or later.

    Raises:
        UsageError: it has packed some.
    """
    for name, module in model.named_modules():
        if not hasattr(module, _PACKS_AGAIN):
            continue
        setattr(module, _PACKS_AGAIN, False)
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise UsageError(
                f"bitsandbytes has packed the weights of {name!r} for forwards without gradients, and none "
                "would pass through them; load the model anew, and attach before it computes anything."
            )


def _package(tensor: Tensor) -> str:
    # A parameter hides the class of its data, which may be a library's own, or has one itself.
    classes = (type(tensor), type(tensor.data))
    names = [cls.__module__.partition(".")[0] for cls in classes]
    return next((name for name in names if name in _PACKAGES), "")


def unquantized(config: C, name: str) -> C:
    """The configuration of a backbone that is to be loaded by this name.

    Raises:
        UsageError: its checkpoint is quantised.
    """
    found = quantization_in(config)
    if found is not None:
        raise UsageError(
            f"The backbone {name!r} is quantized ({found}), and by name only backbones in fp32, fp16 or bf16 "
            "are loaded; name the checkpoint that it was made from."
        )
    return config


def _words(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method") or "unknown method"
    words = [str(getattr(method, "value", method))]
    bits = next((settings[key] for key in _BITS if isinstance(settings.get(key), int)), None)
    coded = re.search(r"Int(\d)", str(settings.get("quant_type")))  # torchao's class of what it does
    bits = int(coded[1]) if bits is None and coded else bits
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else bits
    return ", ".join([*words, *([f"{bits} bits"] if bits else [])])

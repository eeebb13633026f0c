"""Backbones whose linear maps are quantised as they are loaded, by transformers' `quantization_config`.

| name | what a weight is | whose | runs on |
|---|---|---|---|
| `int8` | 8 bits, with a scale for each output | torchao, weights alone | CPUs and GPUs |
| `int4` | 4 bits (NF4), with a scale for each 64 numbers | bitsandbytes | GPUs, and CPUs by plain code |

Both compute with the weight that the numbers stand for, in the dtype of the activations: gradients of what is
attached are exact for that weight. The maps inside the layers are quantised; embeddings, norms, poolers,
heads and a language model's projection stay as they are (Dettmers et al., QLoRA, arXiv:2305.14314).
"""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from autopeft.assets.making import making_model
from autopeft.assets.quantized import is_packed, keep_differentiable
from autopeft.assets.quiet import quiet_transformers
from autopeft.errors import UsageError, near

__all__ = ["QUANTIZED", "check_quantize", "quantization_options", "require_library", "settle_quantized"]

QUANTIZED = ("int8", "int4")
"""How a backbone can be quantised while it is loaded."""

_LIBRARIES = {"int8": "torchao", "int4": "bitsandbytes"}


def check_quantize(name: str) -> str:
    """The name, checked.

    Raises:
        UsageError: it is none of `QUANTIZED`.
    """
    if name not in QUANTIZED:
        raise UsageError(
            f"`quantize` must be {' or '.join(map(repr, QUANTIZED))}, but got "
            f"quantize={name!r}.{near(str(name), QUANTIZED)}"
        )
    return name


def require_library(name: str) -> None:
    """Raise UsageError if the library that quantises so is not installed, or the name is unknown."""
    if find_spec(_LIBRARIES[check_quantize(name)]) is None:
        raise UsageError(
            f"quantize={name!r} needs the package {_LIBRARIES[name]}, which is not installed: pip install "
            "'autopeft[quantized]'."
        )


def quantization_options(
    name: str, config: PreTrainedConfig, auto_class: Any, dtype: torch.dtype, model: str
) -> dict[str, Any]:
    """The options of `from_pretrained` by which the linear maps in the layers are quantised.

    Args:
        name: one of `QUANTIZED`.
        config: of the checkpoint.
        auto_class: what it will be loaded with.
        dtype: what is computed in.
        model: what the backbone is called.

    Raises:
        UsageError: the name is unknown, its library missing, or no layer has a linear map of the class that
            can be quantised (GPT-2 has another one).
    """
    require_library(name)
    make = getattr(auto_class, "from_config", None) or auto_class._from_config
    with torch.device("meta"), quiet_transformers(), making_model(repr(model)):
        made = make(copy.deepcopy(config))
    lists = tuple(f"{n}." for n, m in made.named_modules() if isinstance(m, nn.ModuleList))
    maps = [n for n, m in made.named_modules() if type(m) is nn.Linear]
    outside = [n for n in maps if not n.startswith(lists)]  # in no list of layers: they stay as they are
    if len(outside) == len(maps):
        raise UsageError(
            f"The layers of {model!r} ({config.model_type}) have no linear map of torch's own class, and no "
            "others can be quantised; leave --quantize out, or take --precision bf16."
        )
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "int4":
        options = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=outside,
        )
        return {"quantization_config": options}
    from torchao.quantization import Int8WeightOnlyConfig

    return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=outside)}


def settle_quantized(model: nn.Module) -> None:
    """Make a model that was just quantised hold no more memory than it needs, at rest and in a step, and
    compute with the same weights with and without gradients."""
    keep_differentiable(model)
    for module in model.modules():
        if type(module) is nn.Linear and is_packed(module.weight) and module.weight.is_floating_point():
            module.__class__ = _PackedLinear
    # What was not quantised lies in the mapped file of the checkpoint, all pages of which were read for the
    # quantised weights and would stay with the process.
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and not is_packed(tensor):
            tensor.data = tensor.data.clone()


class _PackedLinear(nn.Linear):
    """A linear map of torchao's, which keeps the packed weight for the backward: torchao's own product keeps
    the weight in full, so that in a step all of them would lie in memory at once."""

    def forward(self, x: Tensor) -> Tensor:
        """The map's output, (…, out)."""
        product: Tensor = _Product.apply(x, self.weight)
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return nn.functional.linear(x, weight.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.dequantize().to(gradient.dtype), None

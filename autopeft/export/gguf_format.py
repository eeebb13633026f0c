"""A LoRA as a GGUF file, which llama.cpp puts on a model of its own (`--lora`).

Names, keys and the order of rows are those of llama.cpp's `convert_lora_to_gguf.py` and
`convert_hf_to_gguf.py` (ggml-org/llama.cpp): each map has `….lora_a` (rank, in) and `….lora_b` (out, rank),
and llama.cpp multiplies B·A by `adapter.lora.alpha` over the map's rank. Its Llama turns neighbouring
features where transformers turns the two halves of a head, so that the rows of q and k stand in another
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autopeft.errors import AutoPEFTError
from autopeft.export.lora_factors import NotServable
from autopeft.export.lora_weights import LoRAWeights
from autopeft.export.peft_format import base_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ADAPTER", "check_gguf", "write_gguf"]

ADAPTER = "adapter.gguf"


@dataclass(frozen=True)
class _Family:
    """What llama.cpp calls a family, and whether rows of q and k are in its own order."""

    architecture: str
    turned: bool


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("LLAMA", turned=True),
    "mistral": _Family("LLAMA", turned=True),
    "qwen2": _Family("QWEN2", turned=False),
}


def check_gguf(model: PreTrainedModel) -> None:
    """Check that a LoRA of this model can be said in GGUF, before anything is computed.

    Raises:
        NotServable: its family is not known, or it has a trained head.
    """
    family = model.config.model_type
    if family not in _FAMILIES:
        raise NotServable(
            f"GGUF files of LoRAs are written for {', '.join(_FAMILIES)}, and this is {family!r}; export it "
            "with --as merged, and convert that with llama.cpp's own script."
        )
    if model.get_output_embeddings() is None:
        raise NotServable(
            f"A {type(model).__name__} has a trained head, which llama.cpp's LoRA files cannot hold; export "
            "it with --as merged."
        )


def write_gguf(model: PreTrainedModel, weights: LoRAWeights, folder: str | Path, *, name: str = "") -> Path:
    """Write a LoRA of `model` as `adapter.gguf` in `folder`, in fp32; returns the file.

    Args:
        name: that it tells of itself.

    Raises:
        NotServable: see `check_gguf`.
        AutoPEFTError: the file cannot be written.
    """
    import gguf

    check_gguf(model)
    family = _FAMILIES[model.config.model_type]
    architecture = gguf.MODEL_ARCH[family.architecture]
    names = gguf.get_tensor_name_map(architecture, int(model.config.num_hidden_layers))
    path = Path(folder) / ADAPTER
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(weights.rank))
        if name:
            writer.add_name(name)
        for key, value in _tensors(model, weights, names, turned=family.turned).items():
            writer.add_tensor(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    except OSError as error:
        raise AutoPEFTError(f"Cannot write {str(path)!r}: {error.strerror}.") from error
    return path


def _tensors(
    model: PreTrainedModel, weights: LoRAWeights, names: Any, *, turned: bool
) -> dict[str, NDArray[np.float32]]:
    """Both factors of each map by llama.cpp's name. α is the largest rank, so B is scaled by its own rank
    over that."""
    config, prefix = model.config, base_prefix(model)
    heads = int(config.num_attention_heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    found: dict[str, NDArray[np.float32]] = {}
    for path, factors in weights.factors.items():
        inner = names.get_name(f"{prefix}{path}")
        if inner is None:
            raise NotServable(f"llama.cpp has no name for {path}, so that no GGUF file can hold its change.")
        b = factors.b * (factors.rank / weights.rank)
        if turned and path.endswith((".q_proj", ".k_proj")):
            b = _neighbours(b, heads if path.endswith(".q_proj") else key_heads)
        found[f"{inner}.weight.lora_a"] = _array(factors.a)
        found[f"{inner}.weight.lora_b"] = _array(b)
    return found


def _neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows (heads · d, …) with feature i and i + d/2 of each head side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = tensor.detach().float().cpu().contiguous().numpy()
    return found

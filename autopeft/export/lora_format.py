"""A LoRA in peft's format, which peft, vLLM and others load; α is the rank everywhere, so that ΔW = B·A."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from autopeft.export.lora_factors import NotServable
from autopeft.export.lora_weights import LoRAWeights
from autopeft.export.peft_format import (
    PEFT_PREFIX,
    PeftAdapter,
    base_prefix,
    lora_config,
    with_head,
    write_adapter,
)
from autopeft.graph import taken_for_experts

if TYPE_CHECKING:
    from autopeft.hybrid import Hybrid

__all__ = ["lora_adapter", "to_lora"]


def to_lora(
    hybrid: Hybrid,
    weights: LoRAWeights,
    folder: str | Path,
    *,
    base_model: str | None = None,
    task_type: str | None = None,
) -> PeftAdapter:
    """Write a hybrid's LoRA to `folder`; the arguments are those of `to_peft`. Returns what was written.

    Raises:
        NotServable: peft would take a map for another one.
        AutoPEFTError: the folder cannot be written.
    """
    adapter = lora_adapter(hybrid, weights, task_type)
    write_adapter(hybrid, adapter, folder, base_model=base_model)
    return adapter


def lora_adapter(hybrid: Hybrid, weights: LoRAWeights, task_type: str | None = None) -> PeftAdapter:
    """Config and tensors of a hybrid's LoRA in peft's words, head included.

    Where biases change, `bias` is `all` and the adapter holds those that do: peft loads what is there.

    Raises:
        NotServable: peft would take a map for another one.
    """
    changed = (p.site for p in hybrid.injection.places.values() if p.exit in weights.factors)
    why = taken_for_experts(hybrid.spec, changed)
    if why is not None:
        raise NotServable(f"{why}, or export it with --as merged.")
    prefix = base_prefix(hybrid.model)
    tensors: dict[str, Tensor] = {}
    ranks = {f"{prefix}{path}": factors.rank for path, factors in weights.factors.items()}
    for path, factors in weights.factors.items():
        tensors[f"{PEFT_PREFIX}{prefix}{path}.lora_A.weight"] = factors.a
        tensors[f"{PEFT_PREFIX}{prefix}{path}.lora_B.weight"] = factors.b
    for name, value in weights.biases.items():
        owner = name.removesuffix(".bias")
        inner = ".base_layer" if owner in weights.factors else ""  # a map that has a LoRA is wrapped by peft
        tensors[f"{PEFT_PREFIX}{prefix}{owner}{inner}.bias"] = value
    alphas = {path: float(rank) for path, rank in ranks.items()}
    config = lora_config(ranks, alphas, transposed=weights.transposed)
    if weights.biases:
        config["bias"] = "all"
    return with_head(hybrid.model, config, tensors, task_type)

"""Biases that merging gives to linear maps that have none."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["add_biases", "config_describes"]

_log = logging.getLogger("autopeft")
_FLAGS = ("attention_bias", "mlp_bias")  # of configs whose linear maps may have biases (Llama)


def add_biases(model: PreTrainedModel, base: nn.Module, biases: Mapping[str, Tensor]) -> None:
    """Give linear maps of the base model biases, by name (`layers.0.self_attn.q_proj.bias`).

    The config is made to say so, so that the model can be saved and loaded again: where a flag of it brings
    biases to other maps too, those are zero. Where no flag does, a warning is logged.
    """
    if not biases:
        return
    for name, value in biases.items():
        _put(base, name, value)
    found = _flags_of(model)
    if found is None:
        _log.warning(
            "Merging gave %s biases (%s, …) of which its config cannot know: the model computes with them, "
            "but loading it after save_pretrained drops them. Save the hybrid itself (Hybrid.save), which "
            "keeps everything.",
            type(model).__name__,
            next(iter(biases)),
        )
        return
    flags, others = found
    for flag in flags:
        setattr(model.config, flag, True)
    for name in others:
        weight = model.get_parameter(f"{name.removesuffix('bias')}weight")
        _put(model, name, weight.new_zeros(weight.shape[0]))


def config_describes(model: PreTrainedModel) -> bool:
    """Whether a model that is made from this one's config has all its parameters."""
    found = _flags_of(model)
    return found is not None and not found[0]


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    """Register a bias, like the weight beside it in dtype, device and whether it trains."""
    owner = model.get_submodule(name.rpartition(".")[0])
    weight = owner.get_parameter("weight")
    owner.bias = nn.Parameter(value.to(weight.device, weight.dtype), requires_grad=weight.requires_grad)


def _flags_of(model: PreTrainedModel) -> tuple[tuple[str, ...], set[str]] | None:
    """The fewest flags with which the config describes the model, and the biases that these bring besides."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    off = [flag for flag in _FLAGS if getattr(model.config, flag, None) is False]
    for flags in (f for n in range(len(off) + 1) for f in combinations(off, n)):
        config = copy.deepcopy(model.config)
        for flag in flags:
            setattr(config, flag, True)
        with torch.device("meta"):
            described = type(model)(config)
        names = {name for name, _ in described.named_parameters(remove_duplicate=False)}
        if own <= names and all(name.endswith(".bias") for name in names - own):
            return flags, names - own
    return None

"""Which modules hold a parameter, and which configs the attentions of a stack read."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from autopeft.backbones import StackPlaces

__all__ = ["configs_of", "owners_of"]


def owners_of(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """By a parameter's id, the modules that hold it and the name that it has there."""
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, leaf))
    return owners


def configs_of(base: nn.Module, stacks: list[StackPlaces]) -> list[PreTrainedConfig]:
    """Every config object that the attention modules and the roots of these stacks read, once each."""
    modules = [base.get_submodule(s.map.root) for s in stacks]
    modules += [base.get_submodule(p.entry) for s in stacks for p in s.places if p.attends]
    found: dict[int, PreTrainedConfig] = {}
    for module in modules:
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            found[id(config)] = config
    return list(found.values())

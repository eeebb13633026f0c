"""Context managers that training and scoring run under, and that restore what they change: `training` flags,
`requires_grad`, random generators, the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from autopeft.assets.heads import head_names
from autopeft.errors import UsageError

__all__ = [
    "check_checkpointing",
    "checkpointing",
    "evaluation_mode",
    "head_kept",
    "learning",
    "training_mode",
]


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    """Put every module's `training` flag back as it was; flags may differ between modules."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def training_mode(model: nn.Module, modules: Iterable[nn.Module], *, dropout: bool) -> Iterator[None]:
    """Train mode for the modules; the backbone trains with its own dropout or without.

    Without dropout the model is in eval mode, which turns off every random part at once (`nn.Dropout`,
    functional attention dropout, LayerDrop), the classifier's dropout included; only the modules are in
    train mode. Layers with gradient checkpointing ask for their own `training` flag, so it is set on them
    alone, with their own float dropout rates at zero meanwhile. Flags and rates are restored on leaving,
    also after an exception.
    """
    with _flags_kept(model):
        if dropout:
            model.train()
            yield
            return
        model.eval()
        rates = []
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = True
                for name, value in list(vars(layer).items()):
                    if ("dropout" in name or name == "layerdrop") and isinstance(value, float):
                        rates.append((layer, name, value))
                        setattr(layer, name, 0.0)
        for module in modules:
            module.train()
        try:
            yield
        finally:
            for owner, name, rate in rates:
                setattr(owner, name, rate)


def check_checkpointing(model: Any) -> None:
    """Raise UsageError if transformers has no gradient checkpointing for a model's family."""
    if not model.supports_gradient_checkpointing:
        raise UsageError(
            f"transformers has no gradient checkpointing for {type(model).__name__}, which --memory-saving "
            "(memory_saving=True) needs; leave it out, or set --micro-batch."
        )


@contextmanager
def checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Within, where it is wanted, layers keep no activations for the backward: they are computed again there.
    Gradients are the same. A model that checkpoints already stays as it is.

    Raises:
        UsageError: the family cannot.
    """
    if not wanted or model.is_gradient_checkpointing:
        yield
        return
    check_checkpointing(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every `training` flag is restored on leaving."""
    with _flags_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def learning(parameters: Sequence[nn.Parameter], wanted: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within, of all `parameters` only those `wanted` require gradients."""
    ids = {id(p) for p in wanted}
    flags = [(p, p.requires_grad) for p in parameters]
    for parameter, _ in flags:
        parameter.requires_grad_(id(parameter) in ids)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def head_kept(model: PreTrainedModel) -> Iterator[None]:
    """Put the head's tensors back as they were."""
    heads = [model.get_submodule(name) for name in head_names(model)]
    kept = [(tensor, tensor.detach().clone()) for head in heads for tensor in head.state_dict().values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        for head in heads:
            head.zero_grad(set_to_none=True)

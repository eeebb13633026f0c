"""A model as it is now, to be compared with what it is later."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Everything that attach may touch: tensors bitwise, flags, hooks, module names, configs."""
    found: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    for name, module in model.named_modules():
        found[f"module {name}"] = type(module)
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_always_called)
        found[f"hooks {name}"] = sum(len(h) for h in hooks)
        loads = (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks)
        found[f"load hooks {name}"] = sum(len(h) for h in loads)
        found[f"attributes {name}"] = sorted(module.__dict__)
        found[f"mode {name}"] = module.training
        if hasattr(module, "config"):
            found[f"config {name}"] = repr(sorted(module.config.__dict__.items(), key=lambda i: i[0]))
    for name, parameter in model.named_parameters():
        found[f"grad {name}"] = (parameter.requires_grad, parameter.grad, id(parameter))
    return found


def changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between two fingerprints of a model."""
    keys = set(a) ^ set(b)
    return sorted(keys) + [
        k
        for k in a
        if k in b and not (torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k])
    ]

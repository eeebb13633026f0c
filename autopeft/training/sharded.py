"""A frozen backbone in parts over several processes.

Almost all memory of a hybrid's training is the frozen backbone. So its layers alone are sharded (torch's
FSDP2, `torch.distributed.fsdp.fully_shard`; Zhao et al. 2023, arXiv:2304.11277): each process holds a part
of every tensor of a layer, and a layer is whole in each of them while it computes. Embeddings, the modules of
the hybrid and the head are whole everywhere.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from autopeft.assets import backbone_fingerprint, quantization_of
from autopeft.backbones import base_model_of, layout_of
from autopeft.errors import UsageError
from autopeft.training.distributed import current_team, set_team

__all__ = ["held_bytes", "shard"]


def shard(model: PreTrainedModel) -> None:
    """Leave this process its part of a model's layers, frozen and on its device; the rest stays whole.

    To be called by all processes of `autopeft.training.processes.Processes`, with the same model, before
    anything is attached. Layers move to the device one by one: a model that no device holds may come from the
    CPU's memory.

    Raises:
        UsageError: there is one process, or the model is quantised, or it has a hybrid.
    """
    team = current_team()
    if team is None:
        raise UsageError("A model is sharded over several processes: call it in `Processes.run`.")
    found = quantization_of(model)
    if found is not None:
        raise UsageError(
            f"{type(model).__name__} is quantized ({found}), and packed weights are not sharded; leave "
            "--quantize out, or train in one process."
        )
    if hasattr(model, "autopeft"):
        raise UsageError(f"{type(model).__name__} has a hybrid attached already; shard it before.")
    fingerprint = backbone_fingerprint(model)
    base = base_model_of(model)
    stacks = layout_of(base).stacks
    layers = {base.get_submodule(path): None for stack in stacks for path in stack.layers}
    mesh = init_device_mesh(team.device.type, (team.size,))
    for layer in layers:
        layer.requires_grad_(False)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # A root holds nothing itself: it lets a layer be fetched while the one before computes. Each stack has
    # its own: texts are written by calling an encoder alone, and torch wants the outer of nested roots first.
    held = {p for layer in layers for p in layer.parameters()}
    for root in dict.fromkeys(base.get_submodule(stack.map.root) for stack in stacks):
        fully_shard(root, mesh=mesh, ignored_params=set(root.parameters()) - held)
    set_team(model, replace(team, backbone=fingerprint))


def held_bytes(model: nn.Module) -> int:
    """Bytes of the sharded tensors that this process holds."""
    local = (getattr(p, "_local_tensor", None) for p in model.parameters())
    return sum(t.numel() * t.element_size() for t in local if t is not None)

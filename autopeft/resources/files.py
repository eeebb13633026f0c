"""The size of a saved hybrid before it exists: its tensors are laid out and their header is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.graph import CompositionGraph, Entry
from autopeft.hybrid import build_modules, deployed_tensors
from autopeft.spec import BackboneSpec

__all__ = ["Head", "entry_bytes", "file_bytes", "safetensors_bytes"]

Head = Mapping[str, nn.Parameter]

_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8


def safetensors_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `safetensors.torch.save_file(state, metadata={"format": "pt"})` writes.

    Eight bytes of length, a JSON header padded to eight, and the tensors, those of wide numbers first and
    then by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    ordered = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        kind = _TYPES.get(tensor.dtype, str(tensor.dtype))
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // _ALIGNMENT) * _ALIGNMENT + end


def file_bytes(graph: CompositionGraph, head: Head) -> int:
    """Bytes of the weights that `Hybrid.save` writes for this graph, with a head of these parameters.

    The modules are built once, in deployed form and in fp32, as finalists are trained. Of a
    `data_dependent` method it is a bound: what training prunes is still there.
    """
    with torch.random.fork_rng(devices=[]):
        modules = build_modules(graph)
        return safetensors_bytes(deployed_tensors(modules, head))


def entry_bytes(entry: Entry, spec: BackboneSpec) -> int:
    """Bytes that one entry takes in such a file, names included."""
    with torch.random.fork_rng(devices=[]):
        modules = {entry.name: entry.method.build(entry.sites, spec)}
        return safetensors_bytes(deployed_tensors(modules, {})) - safetensors_bytes({})

"""A backbone's weights: their fingerprint, and one copy of them for all processes of a machine."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from autopeft.assets.cache import SPARE_DISK, cache_folder, publish
from autopeft.errors import AssetError

__all__ = ["backbone_fingerprint", "bytes_of", "held_tensors", "map_weights"]

_log = logging.getLogger("autopeft")
_ALIGNMENT = 64
_LARGEST = 4 << 30
_SAMPLE = 64  # values of a tensor
_FINGERPRINTS: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()
_NOT_STRUCTURE = {"id2label", "label2id", "num_labels", "problem_type", "architectures", "use_cache"}


def _plain(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, and of those that a library's class wraps (torchao's quantised ones) what they hold."""
    for name, tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            inner, _ = tensor.__tensor_flatten__()
            yield from _plain((f"{name}.{part}", getattr(tensor, part)) for part in inner)
        else:
            yield name, tensor


def held_tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """The tensors of the base model by name, without what a quantised module makes anew for a state dict, and
    without what is attached."""
    base = model.base_model
    found = _plain((*base.named_parameters(), *base.named_buffers()))
    return [(name, tensor) for name, tensor in found if not name.startswith("autopeft.")]


def backbone_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of the base model: its class, configuration and every weight. Remembered until one changes."""
    base = cast(PreTrainedModel, model.base_model)
    held = [tensor for _, tensor in held_tensors(model)]
    # Some values of each tensor: fused optimizers, and what writes to `.data`, do not raise its version.
    samples: dict[torch.device, list[Tensor]] = {}
    for tensor in held:
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, len(flat) // _SAMPLE)].contiguous().view(torch.uint8)
        samples.setdefault(tensor.device, []).append(some)
    sampled = b"".join(bytes_of(torch.cat(found)).tobytes() for found in samples.values())
    now = [(t.data_ptr(), t._version, t.dtype) for t in held], sampled
    kept = _FINGERPRINTS.get(model)
    if kept is not None and kept[0] == now:
        return kept[1]
    config = {
        k: v for k, v in base.config.to_dict().items() if k not in _NOT_STRUCTURE and not k.startswith("_")
    }
    digest = hashlib.sha256(json.dumps([type(base).__name__, config], sort_keys=True, default=str).encode())
    for name, tensor in _plain(base.state_dict(keep_vars=True).items()):
        if name.startswith("autopeft."):
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor).data)
    _FINGERPRINTS[model] = (now, digest.hexdigest())
    return _FINGERPRINTS[model][1]


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """A tensor's bytes in order, shape (bytes,), shared where it lies on the CPU without gaps."""
    flat: NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def map_weights(model: PreTrainedModel) -> bool:
    """Let the base model's parameters lie in a file of the cache that every process maps; whether they do.

    What is written to them stays in this process. The values are compared before they are exchanged. Weights
    on accelerators, above 4 GiB or without room on the disk stay where they are.
    """
    # Every parameter of the base model, once, with its first and last byte in the file.
    places: list[tuple[Tensor, int, int]] = []
    total = 0
    for name, parameter in _plain(model.base_model.named_parameters()):
        if not name.startswith("autopeft."):
            start = -(-total // _ALIGNMENT) * _ALIGNMENT
            total = start + parameter.numel() * parameter.element_size()
            places.append((parameter, start, total))
    if not total or total > _LARGEST or any(p.device.type != "cpu" for p, _, _ in places):
        return False
    try:
        folder = cache_folder("weights") / backbone_fingerprint(model)
        file = folder / "tensors"
        if not _has(file, total):
            if shutil.disk_usage(folder.parent).free < total + SPARE_DISK:
                return False
            publish(
                folder,
                lambda made: _write(made / "tensors", places, total),
                lambda made: _has(made / "tensors", total),
            )
        mapped = np.memmap(file, dtype=np.uint8, mode="c", shape=(total,))
    except (OSError, AssetError) as error:
        _log.warning("the backbone's weights are not shared between processes: %s", error)
        return False
    found = [
        (p, torch.from_numpy(mapped[start:stop]).view(p.dtype).view(p.shape)) for p, start, stop in places
    ]
    if not all(torch.equal(p.detach(), tensor) for p, tensor in found):
        _log.warning("%s is damaged and was removed", file)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    for parameter, tensor in found:
        parameter.data = tensor
    return True


def _has(file: Path, total: int) -> bool:
    return file.is_file() and file.stat().st_size == total


def _write(file: Path, places: list[tuple[Tensor, int, int]], total: int) -> None:
    with file.open("wb") as out:
        for parameter, start, _ in places:
            out.seek(start)
            out.write(bytes_of(parameter).data)
        out.truncate(total)

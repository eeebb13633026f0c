"""A loaded model and its tokenizer as a folder of the cache, so that other processes can load them."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from autopeft.assets.cache import cache_dir, intact, make_room, publish, sha256_of, writable_folder
from autopeft.assets.quantized import quantization_of
from autopeft.assets.quiet import quiet_transformers
from autopeft.assets.weights import bytes_of
from autopeft.errors import AssetError, UsageError

__all__ = ["keep_model"]

_FOLDER = "live-models"
_LIMIT = 64 << 30
_ATTACHED = "autopeft."  # names of what a hybrid puts on a model


def keep_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | BaseImageProcessor) -> Path:
    """The folder of the cache that holds this model as safetensors, its configuration and its tokenizer or
    image processor.

    It is named after the SHA-256 of them and written once; where the cache cannot be written, it is kept
    until this process ends. The model and its configuration stay as they are.

    Raises:
        UsageError: a hybrid is attached to the model, or weights are not in memory or not plain.
        AssetError: there is no room for it.
    """
    state = model.state_dict()
    if any(name.startswith(_ATTACHED) for name in state):
        raise UsageError(f"{type(model).__name__} has a hybrid attached; call detach() on it first.")
    found = quantization_of(model)
    if found is not None:
        raise UsageError(
            f"{type(model).__name__} is quantized ({found}); hand over the model in fp32, fp16 or bf16."
        )
    absent = [name for name, tensor in state.items() if tensor.device.type == "meta"]
    if absent:
        raise UsageError(
            f"{len(absent)} weights of {type(model).__name__} are not in memory: {absent[0]}, …."
        )
    root = writable_folder(_FOLDER)
    with tempfile.TemporaryDirectory(prefix=".tokens-", dir=root) as scratch:
        tokenizer.save_pretrained(scratch)
        digest = _digest(model, Path(scratch))
    kept = cache_dir() / _FOLDER / digest
    if intact(kept):
        with suppress(OSError):  # a cache that cannot be written
            kept.touch()
        return kept
    folder = root / digest
    if not intact(folder):
        size = sum(t.numel() * t.element_size() for t in state.values())
        if not make_room(root, size, _LIMIT):
            raise AssetError(f"The model's {size >> 20} MB do not fit the cache folder {root}.")

        def fill(made: Path) -> None:
            # `save_pretrained` writes the class and the dtype into the configuration that it saves.
            held = [model.config, getattr(model, "generation_config", None)]
            before = [(part, copy.deepcopy(vars(part))) for part in held if part is not None]
            try:
                with quiet_transformers():
                    model.save_pretrained(made, safe_serialization=True)
            finally:
                for part, values in before:
                    vars(part).clear()
                    vars(part).update(values)
            tokenizer.save_pretrained(made)

        try:
            publish(folder, fill)
        except OSError as error:
            raise AssetError(f"The model cannot be saved to {folder}: {error}.") from error
    folder.touch()
    return folder


def _digest(model: PreTrainedModel, tokens: Path) -> str:
    digest = hashlib.sha256(f"{type(model).__name__}\n{model.config.to_json_string()}".encode())
    generation = getattr(model, "generation_config", None)
    if generation is not None:  # it says where answers end
        digest.update(generation.to_json_string().encode())
    for path in sorted(p for p in tokens.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(tokens)} {sha256_of(path)}\n".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(bytes_of(tensor).data)
    return digest.hexdigest()

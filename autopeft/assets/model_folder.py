"""A model's folder, which may come from a stranger: looked at before transformers reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopeft.assets.safetensors_header import read_header
from autopeft.errors import UsageError
from autopeft.foreign import file_in, read_json

__all__ = ["CHAT_TEMPLATES", "check_config", "check_folder", "with_adapter"]

_LARGEST_JSON = 16 << 20
_ADAPTER = "adapter_config.json"
_CONFIG = "config.json"
CHAT_TEMPLATES = "additional_chat_templates"
"""The one folder in a model's that transformers reads."""
_READ = (".jinja", ".json", ".model", ".safetensors", ".txt")  # what transformers may read


def check_folder(folder: Path, weights: Sequence[Path]) -> None:
    """Check the configuration, the weights' headers and that nothing else would be loaded into the backbone.

    Raises:
        UsageError: something is damaged, is a link that leads out of the folder (see `foreign.file_in`) or no
            plain file, or an adapter of Hugging Face peft lies in the folder.
    """
    for path in sorted([*folder.iterdir(), *(folder / CHAT_TEMPLATES).glob("*.jinja")]):
        if path.suffix in _READ and (path.is_symlink() or not path.is_dir()):
            file_in(folder, path.relative_to(folder).as_posix())
    if (folder / _ADAPTER).exists():
        raise with_adapter(str(folder))
    check_config(folder)
    _check_shards(folder, [path.name for path in weights])
    for path in weights:
        read_header(path)


def check_config(folder: Path) -> None:
    """Check that `config.json`, where there is one, is a JSON object in a file of the folder's own.

    Raises:
        UsageError: it is not.
    """
    if (folder / _CONFIG).is_file():
        file_in(folder, _CONFIG)
        _read_table(folder / _CONFIG)


def with_adapter(path: str) -> UsageError:
    """The refusal of a model that has an adapter with it: a backbone is what its own weights say."""
    return UsageError(
        f"{path} holds an adapter of Hugging Face peft ({_ADAPTER}), which transformers loads into the "
        "backbone: merge it into the model (`merge_and_unload()` of peft) and save that, or move the adapter "
        "elsewhere."
    )


def _read_table(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder."""
    found = read_json(file, _LARGEST_JSON)
    if not isinstance(found, dict):
        raise UsageError(f"{file} does not hold a JSON object: the folder is not a saved model.")
    return found


def _check_shards(folder: Path, weights: list[str]) -> None:
    """Raise where the index of a model in several files names others than those of its folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file() or "model.safetensors" in weights:
        return
    shards = _read_table(index).get("weight_map")
    others = [s for s in shards.values() if s not in weights] if isinstance(shards, dict) else [None]
    if others:
        raise UsageError(f"{index} names {others[0]!r}, which is no *.safetensors file of this folder.")

"""A backbone's files on their way to machines that have not got them.

The driver packs a folder once; Ray's object store carries it; a worker unpacks it into its machine's cache
where the same files are not there already. Files with pickled weights or code never travel.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autopeft.assets import ModelSource, make_room, publish, sha256_of, writable_folder
from autopeft.errors import AssetError

__all__ = ["ModelFiles", "SentFiles", "local_source", "pack", "receive"]

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")
_LARGEST = 8 << 30
_CACHE = 16 << 30
_FOLDER = "shipped"
_CHAT_TEMPLATES = "additional_chat_templates"  # the one folder in a model's that transformers reads


@dataclass(frozen=True)
class SentFiles:
    """What travels to every worker: which files there are, and how to get them.

    Attributes:
        path: where the driver has the folder.
        files: path from the folder to size and SHA-256.
        fetch: brings the bytes of every file, each of shape (size,).
    """

    path: str
    files: Mapping[str, tuple[int, str]]
    fetch: Callable[[], Mapping[str, NDArray[np.uint8]]]

    @property
    def digest(self) -> str:
        """SHA-256 of names and contents."""
        lines = [f"{name} {size} {sha}" for name, (size, sha) in sorted(self.files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class ModelFiles:
    """A folder that is ready to travel: bytes by the path from it, mapped from the disk."""

    path: str
    contents: Mapping[str, NDArray[np.uint8]]

    @property
    def files(self) -> dict[str, tuple[int, str]]:
        """Name to size and SHA-256."""
        return {name: (data.nbytes, _sha256(data)) for name, data in self.contents.items()}


def pack(source: ModelSource) -> ModelFiles | None:
    """The backbone's files, or `None` where it is no folder here or above 8 GiB.

    What does not travel must lie on every machine under the same path, or be on the hub.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return None
    found = [*folder.iterdir(), *(folder / _CHAT_TEMPLATES).glob("*.jinja")]
    files = sorted(p for p in found if p.suffix in _SUFFIXES and p.is_file())
    if not files or sum(p.stat().st_size for p in files) > _LARGEST:
        return None
    return ModelFiles(source.path, {p.relative_to(folder).as_posix(): _mapped(p) for p in files})


_SENT: dict[str, SentFiles] = {}


def receive(sent: SentFiles) -> None:
    """Let this process know what travels with its run."""
    _SENT[sent.path] = sent


def local_source(source: ModelSource) -> ModelSource:
    """Where a backbone lies on this machine: under the driver's path if it is the same there, else unpacked.

    A source that did not travel is returned as it came.

    Raises:
        AssetError: what arrived is damaged, or the cache has no room for it.
    """
    sent = _SENT.get(source.path)
    if sent is None or _same(Path(source.path), sent):
        return source
    root = writable_folder(_FOLDER)
    folder = root / sent.digest
    if not _same(folder, sent):
        if not make_room(root, sum(size for size, _ in sent.files.values()), _CACHE):
            raise AssetError(
                f"The cache folder {root} has no room for the backbone; set AUTOPEFT_CACHE to another."
            )
        publish(folder, lambda made: _unpack(made, sent), lambda made: _same(made, sent))
    os.utime(folder)
    return replace(source, path=str(folder))


def _unpack(folder: Path, sent: SentFiles) -> None:
    contents = sent.fetch()
    for name, (size, sha256) in sent.files.items():
        own = name.removeprefix(f"{_CHAT_TEMPLATES}/")
        if Path(own).name != own or not own.endswith(_SUFFIXES):
            raise AssetError(f"A backbone that arrived has a file {name!r}, which it cannot have.")
        data = contents.get(name)
        if data is None or data.nbytes != size or _sha256(data) != sha256:
            raise AssetError(f"The file {name} of the backbone was damaged on its way to this machine.")
        (folder / name).parent.mkdir(exist_ok=True)
        with (folder / name).open("wb") as out:
            out.write(data.data)


def _same(folder: Path, sent: SentFiles) -> bool:
    """Whether a folder has the very files."""
    return _complete(folder, sent) and all(
        sha256_of(folder / name) == sha256 for name, (_, sha256) in sent.files.items()
    )


def _complete(folder: Path, sent: SentFiles) -> bool:
    """Whether a folder has files of the right sizes; an unpacked folder is complete or not there."""
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in sent.files.items())
    except OSError:
        return False


def _mapped(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size == 0:
        return np.empty(0, np.uint8)  # which cannot be mapped
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def _sha256(data: NDArray[np.uint8]) -> str:
    return hashlib.sha256(data.data).hexdigest()

"""Pixels of images, made once for each image processor, kept on disk, and served in batches."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.assets import ImageProcessor, cache_folder, intact, publish, warn_once
from autopeft.errors import AssetError, DataError, UsageError
from autopeft.tasks.images import ImageFile
from autopeft.tasks.tokens import POSITION_MASK, EncodedSplit, Indices

__all__ = ["EncodedImages", "encode_images"]

_FILE, _FORMAT = "pixels.npy", 1
_IN_MEMORY = 4 << 30
_NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class EncodedImages(EncodedSplit):
    """Images of one split: `pixels` (rows, channels, height, width), bytes, or fp32 without a `scale`.

    There are no tokens: `ids` is empty, and `offsets` count the positions of the hidden states that the
    backbone makes, as many of each image.

    Attributes:
        scale, offset: (channels,), see `ImageProcessor`.
    """

    pixels: NDArray[Any]
    scale: NDArray[np.float32] | None
    offset: NDArray[np.float32] | None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pixels of all rows as the model takes them; labels are left out."""
        digest = hashlib.sha256(str((self.pixels.dtype, self.pixels.shape)).encode())
        for part in (self.scale, self.offset):
            digest.update(b"" if part is None else part.tobytes())
        for row in self.pixels:
            digest.update(np.ascontiguousarray(row).data)
        return digest.hexdigest()

    def content(self, row: int) -> bytes:
        """See `EncodedSplit.content`."""
        return np.ascontiguousarray(self.pixels[row]).tobytes()

    def collate(
        self, rows: Sequence[int] | Indices, *, device: str | torch.device = "cpu"
    ) -> dict[str, Tensor]:
        """The given rows as one batch.

        Keys: `pixel_values` (B, channels, height, width) fp32, `POSITION_MASK` (B, positions) ones, `labels`
            (B,) where there are labels, `task_id` (B,) zeros.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        pixels = torch.from_numpy(self.pixels[chosen]).to(device, non_blocking=True).float()
        if self.scale is not None and self.offset is not None:
            scale, offset = (torch.from_numpy(p).to(device)[:, None, None] for p in (self.scale, self.offset))
            pixels = pixels * scale + offset
        batch = {
            "pixel_values": pixels,
            POSITION_MASK: torch.ones(len(chosen), self.max_length, dtype=torch.int64),
            "task_id": torch.zeros(len(chosen), dtype=torch.int64),
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[chosen])
        return {key: value.to(device, non_blocking=True) for key, value in batch.items()}

    def take(self, rows: Indices) -> EncodedImages:
        """See `EncodedSplit.take`."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        offsets = self.offsets[: len(chosen) + 1]
        if len(chosen) > len(self):  # a row may be taken several times
            offsets = np.arange(len(chosen) + 1, dtype=np.int64) * self.max_length
        return replace(self, pixels=self.pixels[chosen], offsets=offsets, labels=labels)


def encode_images(
    images: Sequence[ImageFile], processor: ImageProcessor, *, kind: str, cached: bool = True
) -> EncodedImages:
    """Pixels of images without labels; `cached` reads and writes the cache on disk.

    Raises:
        DataError: an image cannot be decoded; see `ImageFile.pixels`.
        UsageError: they take more memory or disk than there is.
    """
    return EncodedImages(
        ids=_NO_TOKENS,
        offsets=np.arange(len(images) + 1, dtype=np.int64) * processor.positions,
        types=None,
        labels=None,
        kind=kind,
        pad_id=0,
        pad_type=0,
        max_length=processor.positions,
        pixels=_kept(images, processor) if cached else _in_memory(images, processor),
        scale=processor.scale,
        offset=processor.offset,
    )


def _kept(images: Sequence[ImageFile], processor: ImageProcessor) -> NDArray[Any]:
    """The pixels, mapped from disk, where they are made row by row: processes share them."""
    told = [str(_FORMAT), processor.fingerprint, *(image.digest for image in images)]
    try:
        root = cache_folder("encoded")
        folder = root / hashlib.sha256("\n".join(told).encode()).hexdigest()
        if not intact(folder):
            size = _size(len(images), processor)
            if shutil.disk_usage(root).free < 2 * size:
                raise AssetError(f"they take {size / 1e9:,.1f} GB, and {root} has too little room.")
            publish(folder, lambda scratch: _write(scratch / _FILE, images, processor))
        found: NDArray[Any] = np.load(folder / _FILE, mmap_mode="r", allow_pickle=False)
        if found.shape == (len(images), *processor.shape) and found.dtype == processor.dtype:
            return found
    except (OSError, ValueError, EOFError, AssetError) as error:
        warn_once(f"Pixels are not kept, and are made again each time: {error}")
    return _in_memory(images, processor)


def _size(rows: int, processor: ImageProcessor) -> int:
    return rows * int(np.prod(processor.shape)) * np.dtype(processor.dtype).itemsize


def _write(path: Path, images: Sequence[ImageFile], processor: ImageProcessor) -> None:
    shape = (len(images), *processor.shape)
    found = np.lib.format.open_memmap(path, mode="w+", dtype=processor.dtype, shape=shape)
    _fill(found, images, processor)
    found.flush()


def _in_memory(images: Sequence[ImageFile], processor: ImageProcessor) -> NDArray[Any]:
    size = _size(len(images), processor)
    if size > _IN_MEMORY:
        raise UsageError(
            f"{len(images):,} images take {size / 1e9:,.1f} GB as the model reads them, and at most "
            f"{_IN_MEMORY >> 30} GiB are held in memory: take fewer rows at once."
        )
    found = np.empty((len(images), *processor.shape), dtype=processor.dtype)
    _fill(found, images, processor)
    return found


def _fill(found: NDArray[Any], images: Sequence[ImageFile], processor: ImageProcessor) -> None:
    for i, image in enumerate(images):
        decoded = image.pixels()
        try:
            found[i] = processor(decoded)
        # The processor's own arithmetic, on an image of any form.
        except Exception as error:
            first = str(error).strip().split("\n")[0] or type(error).__name__
            raise DataError(
                f"{image.name}: the model's image processor makes nothing of it ({first})."
            ) from error

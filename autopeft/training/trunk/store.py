"""Hidden states on disk, filled row by row, mapped by every process that needs them.

A store is a sparse file of fp16 vectors, one for each token of a split, and a checksum for each row; of a row
with a state beyond fp16 the mark that it has one stands there. A row is written before its checksum, and a
checksum is compared when a process first reads the row: a row torn by a crash, or not yet visible, counts as
absent and is computed again. Writers need no lock, since a row's states do not depend on who computes them.
They write to the file, not to the mapping: on a full disk the one raises an error, the other kills the
process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autopeft.assets import cache_folder, make_room, publish, warn_once
from autopeft.errors import AssetError, UsageError
from autopeft.quantity import parse_bytes
from autopeft.tasks.encode import EncodedSplit

__all__ = ["LIMIT_VARIABLE", "Rows", "StateStore", "open_store", "size_limit"]

LIMIT_VARIABLE = "AUTOPEFT_TRUNK_LIMIT"
_DEFAULT_LIMIT = "10GB"
_FORMAT = 1
# In place of a checksum: the row is absent; it has a state that fp16 cannot hold.
_ABSENT, _BEYOND = 0, 1
_log = logging.getLogger("autopeft")
Rows = NDArray[np.int64]


def size_limit() -> int:
    """Bytes that all stores together may take: `AUTOPEFT_TRUNK_LIMIT`, by default 10 GB; 0 turns them off.

    Raises:
        UsageError: the variable is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE, _DEFAULT_LIMIT)
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise UsageError(f"{LIMIT_VARIABLE}: {error}") from error


class StateStore:
    """The states behind one layer of a backbone for every row of a split. Made by `open_store`.

    Attributes:
        beyond: (rows,), whether a state of the row is known to be beyond fp16, from `missing` or `put`.
    """

    def __init__(self, folder: Path, offsets: Rows, width: int) -> None:
        self.folder, self.offsets, self.width = folder, offsets, width
        shape = (int(offsets[-1]), width)
        self._states = np.memmap(folder / "states", dtype=np.float16, mode="r+", shape=shape)
        self._sums = np.memmap(folder / "sums", dtype=np.uint32, mode="r+", shape=(len(offsets) - 1,))
        self._out = (folder / "states").open("r+b", buffering=0), (folder / "sums").open("r+b", buffering=0)
        self._trusted = np.zeros(len(offsets) - 1, dtype=bool)
        self.beyond = np.zeros(len(offsets) - 1, dtype=bool)
        self._tensor = torch.from_numpy(self._states)
        os.utime(folder)

    def missing(self, rows: Rows) -> Rows:
        """Those of `rows` that are not stored, or not soundly, and not known to be beyond fp16."""
        for row in rows[~self._trusted[rows]]:
            found = int(self._sums[row])
            self.beyond[row] = found == _BEYOND
            states = self._states[self.offsets[row] : self.offsets[row + 1]]
            whole = found != _ABSENT and found == _checksum(states)
            self._trusted[row] = whole or self.beyond[row]
        return rows[~self._trusted[rows]]

    def put(self, row: int, states: Tensor) -> None:
        """Store the states (tokens, width) of a row, or that one of them is not finite in fp16.

        Raises:
            OSError: the disk is full.
        """
        half = states.detach().to("cpu", torch.float16)
        states_file, sums_file = self._out
        self.beyond[row] = not bool(torch.isfinite(half).all())
        noted = _BEYOND
        if not self.beyond[row]:
            content = half.contiguous().numpy()
            noted = _checksum(content)
            _write_at(states_file, content.tobytes(), int(self.offsets[row]) * self.width * 2)
        _write_at(sums_file, np.uint32(noted).tobytes(), row * 4)
        self._trusted[row] = True

    def gather(self, flat: Rows, inside: NDArray[np.bool_]) -> Tensor:
        """States (rows, positions, width) in fp32, zero at padding.

        Args:
            flat: the tokens of all rows, one row after the other.
            inside: (rows, positions), true where a token is.
        """
        found = self._tensor.index_select(0, torch.from_numpy(flat)).float()
        if inside.all():
            return found.view(*inside.shape, self.width)
        padded = torch.zeros(*inside.shape, self.width)
        padded[torch.from_numpy(inside)] = found
        return padded


def _checksum(content: NDArray[np.float16]) -> int:
    return max(zlib.crc32(content.tobytes()), _BEYOND + 1)


def _write_at(file: Any, content: bytes, offset: int) -> None:
    while content:
        written = os.pwrite(file.fileno(), content, offset)
        content, offset = content[written:], offset + written


def open_store(
    split: EncodedSplit, identity: dict[str, Any], width: int, stack: str = "encoder"
) -> StateStore | None:
    """The store of a split's states, made where there is none; `None` where there is no room for one.

    Stores that were not used for longest are removed where the limit asks for it; who has them mapped keeps
    them.

    Args:
        split: the rows.
        identity: all that the states depend on beside the rows.
        width: values of one state.
        stack: whose states they are (see `EncodedSplit.offsets_of`).

    Raises:
        UsageError: the limit is no size.
    """
    limit = size_limit()
    if not limit:
        return None
    offsets = split.offsets_of(stack)
    sizes = {"states": int(offsets[-1]) * width * 2, "sums": (len(offsets) - 1) * 4}
    size = sum(sizes.values())
    text = json.dumps([_FORMAT, width, split.fingerprint, identity], sort_keys=True)
    try:
        root = cache_folder("trunk")
        folder = root / hashlib.sha256(text.encode()).hexdigest()
        if not _sound(sizes, folder):
            if not make_room(root, size, limit):
                _log.info("no room for %d MB of hidden states; they are computed anew", size >> 20)
                return None
            publish(folder, partial(_fill, sizes), partial(_sound, sizes))
        return StateStore(folder, offsets, width)
    except (OSError, AssetError) as error:
        # A full disk, a cache that cannot be written, or a store that another process removed in between:
        # training does not need it.
        warn_once(f"Hidden states are not kept, and are computed each time: {error}")
        return None


def _fill(sizes: Mapping[str, int], folder: Path) -> None:
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            file.truncate(size)  # sparse: takes room as rows come in


def _sound(sizes: Mapping[str, int], folder: Path) -> bool:
    """Whether the files of a store have the sizes that they should."""
    try:
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False

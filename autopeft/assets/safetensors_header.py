"""The header of a safetensors file, checked against the file's size before anything is allocated.

A file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object of tensor
name to `dtype`, `shape` and `data_offsets` (https://huggingface.co/docs/safetensors). Files come from
strangers: what the header says must fit the bytes that are there.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import DataError

__all__ = ["FLOATS", "StoredTensor", "read_header"]

_MOST = 16 << 20  # bytes of a header: some 100,000 tensors
_LONGEST, _DIMENSIONS = 1 << 48, 16  # of one dimension, and how many
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""The dtypes that torch computes with as they are."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor by its header: its dtype in the format's words, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        DataError: it is no whole safetensors file, or holds a dtype that is not read here.
    """
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            start = source.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= min(_MOST, size - 8):
                raise DataError(f"{file} is no safetensors file, or was cut: it has {size:,} bytes.")
            text = source.read(length)
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("it is no table")
        size -= 8 + length
        places: list[tuple[int, int, str, StoredTensor]] = []  # first and last byte behind the header
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
                raise ValueError(f"what it says of {name!r:.100} is no tensor")
            dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
            if not isinstance(dtype, str) or dtype not in _BITS:
                raise ValueError(f"{name!r:.100} has the dtype {dtype!r:.20}, which is not read here")
            short = all(isinstance(part, list) and len(part) <= _DIMENSIONS for part in (shape, offsets))
            whole = short and all(type(n) is int and 0 <= n <= _LONGEST for n in (*shape, *offsets))
            if not whole or len(offsets) != 2:
                raise ValueError(f"{name!r:.100} has an impossible shape or place")
            if math.prod(shape) * _BITS[dtype] // 8 != offsets[1] - offsets[0] or offsets[1] > size:
                raise ValueError(f"{name!r:.100} is said to have other bytes than there are")
            places.append((offsets[0], offsets[1], name, StoredTensor(dtype, tuple(shape))))
        places.sort()
        end = 0
        for begin, stop, _, _ in places:
            if begin != end:
                raise ValueError("its tensors overlap, or leave a gap")
            end = stop
        if end != size:
            raise ValueError(f"it accounts for {end:,} of {size:,} bytes")
        return {name: stored for _, _, name, stored in places}
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise DataError(f"{file} has a damaged header: it is nested too deeply.") from error
    except ValueError as error:
        raise DataError(f"{file} has a damaged header: {error}.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names something twice")
    return found

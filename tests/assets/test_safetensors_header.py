"""Headers of safetensors files, also of those that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from autopeft.assets import StoredTensor, read_header
from autopeft.errors import DataError


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(dtype: str, shape: list[Any], end: Any, start: Any = 0) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros(0, 7, dtype=torch.bfloat16),
        "c": torch.tensor(True),
        "d": torch.zeros(4, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / "x", metadata={"format": "pt"})
    assert read_header(tmp_path / "x") == {
        "a": StoredTensor("F32", (2, 3)),
        "b": StoredTensor("BF16", (0, 7)),
        "c": StoredTensor("BOOL", ()),
        "d": StoredTensor("I64", (4,)),
    }


HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "no JSON": (b"[" * 100_000, b"", "nested too deeply"),
    "a list": ([], b"", "no table"),
    "null": (None, b"", "no table"),
    "not UTF-8": (b'{"a\xff": 1}', b"", "utf-8"),
    "a name twice": (b'{"a": {}, "a": {}}', b"", "twice"),
    "a tensor that is none": ({"a": 3}, b"", "is no tensor"),
    "a key too many": ({"a": {**tensor("F32", [1], 4), "x": 1}}, b"1234", "is no tensor"),
    "F4": ({"a": tensor("F4", [8], 4)}, b"1234", "dtype 'F4'"),
    "F6": ({"a": tensor("F6_E2M3", [4], 3)}, b"123", "dtype 'F6_E2M3'"),
    "an unhashable dtype": ({"a": {**tensor("F32", [1], 4), "dtype": []}}, b"1234", "dtype"),
    "a dimension of 2^63": ({"a": tensor("F32", [0, 2**63], 0)}, b"", "impossible shape"),
    "a negative dimension": ({"a": tensor("F32", [-1, -1], 4)}, b"1234", "impossible shape"),
    "a fraction": ({"a": tensor("F32", [1.0], 4)}, b"1234", "impossible shape"),
    "a truth value": ({"a": tensor("F32", [True], 4)}, b"1234", "impossible shape"),
    "a million dimensions": ({"a": tensor("F32", [2**47] * 800_000, 4)}, b"1234", "impossible shape"),
    "more than there is": ({"a": tensor("F32", [100], 400)}, b"1234", "other bytes"),
    "an end before its begin": ({"a": tensor("F32", [1], 0, 4)}, b"1234", "other bytes"),
    "a gap": ({"a": tensor("F32", [1], 8, 4)}, b"12345678", "gap"),
    "an overlap": ({"a": tensor("F32", [1], 4), "b": tensor("F32", [1], 6, 2)}, b"123456", "overlap"),
    "bytes that nobody owns": ({"a": tensor("F32", [1], 4)}, b"1234more", "accounts for 4 of 8"),
    "a number of 5,000 digits": (b'{"a": ' + b"9" * 5_000 + b"}", b"", "damaged header"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    header, data, said = HOSTILE[case]
    file = write(tmp_path / "x", header, data)
    with pytest.raises(DataError, match=said) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 20, 100])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    save_file({"a": torch.zeros(3, 4)}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    assert size < len(whole)
    (tmp_path / "x").write_bytes(whole[:size])
    with pytest.raises(DataError, match=r"no safetensors file, or was cut|other bytes|damaged header"):
        read_header(tmp_path / "x")


def test_the_length_of_a_header_is_no_promise(tmp_path: Path) -> None:
    for length in (2**63, 2**64 - 1, 1 << 30, 0):
        with pytest.raises(DataError, match="no safetensors file, or was cut"):
            read_header(write(tmp_path / "x", b"{}", length=length))
    with pytest.raises(DataError, match="cannot be read"):
        read_header(tmp_path)

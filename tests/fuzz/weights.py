"""Mutations of safetensors files: 8 bytes for the header's length, a header in JSON, then the tensors' bytes
(https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from random import Random
from typing import Any

from . import mutate

__all__ = ["changed_header", "safetensors"]

_DTYPES = (
    *("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3", "F8_E5M2", "BOOL", "U8", "I8", "I16", "U16", "I32"),
    *(
        "U32",
        "I64",
        "U64",
        "F16",
        "BF16",
        "F32",
        "F64",
        "C64",
        "f32",
        "",
        "Q4_K",
        "\x1b[31m",
        None,
        7,
        ["F32"],
    ),
)
_SIZES = (0, 1, -1, 2, 2**31, 2**32, 2**48, 2**62, 2**63 - 1, 2**63, 2**64, 10**40, 1.5, "2", None, True)
_LENGTHS = (0, 1, 7, 2**31, 2**32 + 1, 2**63, 2**64 - 1)
_NUMBERS = (float("nan"), float("inf"), float("-inf"), 3.4e38, -3.4e38, 1e-45, 0.0)


def safetensors(random: Random, valid: bytes) -> bytes:
    """A file with something wrong in its header, its bytes or its end, or nothing but its numbers."""
    return random.choice(_EDITS)(random, valid)


def changed_header(valid: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another header over the same bytes; `change` changes it, or returns a new one."""
    header, data = _parts(valid)
    new = change(header)
    return _joined(header if new is None else new, data)


def _parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def _joined(header: Any, data: bytes) -> bytes:
    try:
        text = header if isinstance(header, bytes) else mutate.bytes_of(json.dumps(header))
    except ValueError:  # more digits than Python writes
        text = b'{"a": ' + b"9" * 5000 + b"}"
    return struct.pack("<Q", len(text)) + text + data


def _tensor(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header[random.choice(sorted(set(header) - {"__metadata__"}))]
    return found


def _bytes(random: Random, valid: bytes) -> bytes:
    return mutate.data(random, valid)


def _cut(random: Random, valid: bytes) -> bytes:
    return valid[: random.choice((0, 4, 8, 9, 100, len(valid) // 2, len(valid) - 1, len(valid) - 40))]


def _longer(random: Random, valid: bytes) -> bytes:
    return valid + b"\0" * random.choice((1, 8, 100_000))


def _length(random: Random, valid: bytes) -> bytes:
    (length,) = struct.unpack("<Q", valid[:8])
    return struct.pack("<Q", random.choice((*_LENGTHS, length - 1, length + 1, len(valid)))) + valid[8:]


def _tree(random: Random, valid: bytes) -> bytes:
    return changed_header(valid, lambda header: mutate.tree(random, header))


def _text(random: Random, valid: bytes) -> bytes:
    header, data = _parts(valid)
    return _joined(mutate.text(random, json.dumps(header)), data)


def _dtype(random: Random, valid: bytes) -> bytes:
    return changed_header(valid, lambda header: _tensor(random, header).update(dtype=random.choice(_DTYPES)))


def _shape(random: Random, valid: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        tensor = _tensor(random, header)
        old = tensor["shape"]
        tensor["shape"] = random.choice(
            (
                [*old, 1],
                old[::-1],
                [1] * random.choice((2, 20, 3000)) + old,
                [0, random.choice(_SIZES)],
                [random.choice(_SIZES) for _ in range(random.randint(0, 4))],
                [*old[:-1], random.choice(_SIZES)],
                random.choice(_SIZES),
            )
        )
        if random.randrange(2) and 0 in (tensor["shape"] if isinstance(tensor["shape"], list) else ()):
            tensor["data_offsets"] = [tensor["data_offsets"][0]] * 2

    return changed_header(valid, change)


def _offsets(random: Random, valid: bytes) -> bytes:
    def change(header: dict[str, Any]) -> None:
        one, other = _tensor(random, header), _tensor(random, header)
        start, end = one["data_offsets"]
        one["data_offsets"] = random.choice(
            (
                other["data_offsets"],
                [end, start],
                [start + 1, end + 1],
                [start, end + 4],
                [random.choice(_SIZES), random.choice(_SIZES)],
                [start],
                [],
                [start, end, end],
            )
        )

    return changed_header(valid, change)


def _twice(random: Random, valid: bytes) -> bytes:
    """One tensor said again, as it was or as another."""
    header, data = _parts(valid)
    name = random.choice(sorted(header))
    again = random.choice((header[name], header[random.choice(sorted(header))], {}))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(again)}}}"
    return _joined(mutate.bytes_of(text), data)


def _other_tensors(random: Random, valid: bytes) -> bytes:
    """A sound file with one tensor more, less, or called otherwise."""
    header, data = _parts(valid)
    names = sorted(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    kind = random.randrange(3)
    if kind == 0:
        last = header.pop(names[-1])
        return _joined(header, data[: last["data_offsets"][0]])
    if kind == 1:
        name = random.choice((mutate.word(random), "head.other", "encoder.9.q.lora.A", "x" * 100_000))
        header[name] = {"dtype": "F32", "shape": [2], "data_offsets": [len(data), len(data) + 8]}
        return _joined(header, data + struct.pack("<2f", 1.0, 2.0))
    old = random.choice(names)
    header[random.choice((mutate.word(random), old + ".x", old[:-1], old.replace("0", "1")))] = header.pop(
        old
    )
    return _joined(header, data)


def _metadata(random: Random, valid: bytes) -> bytes:
    found = random.choice(
        ({"format": mutate.word(random)}, {"a": {}}, [], "x", {"format": "pt", "b": "c" * 10**6})
    )
    return changed_header(valid, lambda header: header.update(__metadata__=found))


def _values(random: Random, valid: bytes) -> bytes:
    """A sound file with numbers that training does not leave."""
    header, data = _parts(valid)
    changed = bytearray(data)
    for _ in range(mutate.many(random, 20)):
        at = 4 * random.randrange(len(changed) // 4)
        changed[at : at + 4] = struct.pack("<f", random.choice(_NUMBERS))
    return _joined(header, bytes(changed))


_EDITS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_bytes, _cut, _longer, _length, _tree, _text, _dtype, _dtype, _shape, _shape, _offsets, _twice),
    *(_other_tensors, _other_tensors, _metadata, _values, _values),
)

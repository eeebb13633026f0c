"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, UsageError, printable

__all__ = [
    "cut_torn_line",
    "empty_folder",
    "escaped",
    "is_there",
    "json_bytes",
    "make_folder",
    "plain",
    "write_atomic",
    "write_json",
]

_BLOCK = 1 << 20


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, then rename: never a half file under
    `path`.

    Raises:
        AutoPEFTError: the disk is full, or the folder is read-only or gone.
    """
    raw = data.encode() if isinstance(data, str) else data
    # Not named after `path`, whose name may be as long as names can be.
    temporary = path.parent / f".new-{secrets.token_hex(8)}"
    try:
        # With the mode that the user's umask gives a new file.
        with open(temporary, "xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        with suppress(OSError):
            os.unlink(temporary)
        if not isinstance(error, OSError):
            raise
        raise AutoPEFTError(
            f"Cannot write {str(path)!r}: {error.strerror}. What was written before is intact."
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder where there is none.

    Raises:
        AutoPEFTError: it cannot be made, as where something else has its name.
    """
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise AutoPEFTError(
            f"Cannot write {str(path)!r}: {error.strerror}. It is to be a folder: move away what is there, "
            "or let the folder above it be written to."
        ) from error


def cut_torn_line(path: Path) -> None:
    """Cut off what a killed process wrote after the last line end of a file, where there is a file.

    Raises:
        AutoPEFTError: it cannot be written.
    """
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - _BLOCK)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.truncate(end)
    except OSError as error:
        raise AutoPEFTError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


def plain(value: Any) -> Any:
    """A value as strict JSON can hold it: dataclasses to dicts, paths to text, NaN and infinities to null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """A value as strict JSON in UTF-8 (see `plain`), with a line end. Halves of surrogate pairs, which UTF-8
    does not have, are written by their numbers."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def escaped(document: str) -> str:
    """A JSON document in which what a terminal would act on, or what turns or hides text, stands by its
    number: it says the same, and can be shown."""
    # Only strings hold such characters, and there each can be written as its number.
    return "".join(c if c == "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in document)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (see `json_bytes`).

    Raises:
        AutoPEFTError: the file cannot be written.
    """
    write_atomic(path, json_bytes(value, indent=2))


def empty_folder(path: Path, option: str, besides: Collection[str] = ()) -> Path:
    """Check that a folder is new or empty, before anything is computed for it.

    Args:
        option: by which another is chosen, for the message.
        besides: names of files that may lie in it.

    Raises:
        UsageError: it holds something, is a file, or is no name for a folder.
    """
    try:
        full = is_there(path) and (not path.is_dir() or any(p.name not in besides for p in path.iterdir()))
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be written: {_why(error)}.") from error
    if full:
        raise UsageError(
            f"{str(path)!r} exists and is not an empty folder; choose another {option}, or remove it."
        )
    return path


def is_there(path: Path) -> bool:
    """Whether there is something at a path that is to be written.

    Raises:
        UsageError: nothing can be there: the name is too long, or nobody may look.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be written: {_why(error)}.") from error
    return True


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

"""Files that are written whole or not at all, and files of strangers that are read with care."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, UsageError

__all__ = [
    "check_inside",
    "copy_in",
    "empty_folder",
    "expanded",
    "file_in",
    "is_there",
    "plain",
    "read_bytes_in",
    "read_json_in",
    "read_table_in",
    "write_atomic",
    "write_json",
]

_MAX_JSON = 8 << 20  # takes up to 32 times as much memory
_LEADS_OUT = "is a link that leads out of its folder, and is not followed"
_SNAPSHOT = re.compile(r"(.*/[a-z]+--[^/]+)/snapshots/[^/]+(/|$)")  # of the hub's cache


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
    except OSError as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise AutoPEFTError(
            f"Cannot write {str(path)!r}: {error.strerror}. What was written before is intact."
        ) from error


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON.

    Raises:
        AutoPEFTError: the file cannot be written.
    """
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_in(folder: Path, name: str) -> Path | None:
    """The plain file `name` of a folder, or `None` where there is none.

    A folder may come from a stranger, so a link in it may not lead out of it. In a snapshot of the hub's
    cache links lead to the blobs beside it.

    Raises:
        UsageError: a link leads out of the folder, or it is no plain file, or nobody may look.
    """
    path = folder / name
    try:
        root, found = folder.resolve(strict=True), path.resolve(strict=True)
        plain_file = stat.S_ISREG(found.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RuntimeError as error:  # links that lead to themselves
        raise UsageError(f"{str(path)!r} cannot be read: it is a link to itself.") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {_why(error)}.") from error
    if not found.is_relative_to(root):
        snapshot = _SNAPSHOT.match(root.as_posix())
        if snapshot is None or not found.is_relative_to(Path(snapshot[1]) / "blobs"):
            raise UsageError(f"{str(path)!r} {_LEADS_OUT}; put the file itself there.")
    if not plain_file:
        raise UsageError(f"{str(path)!r} is not a plain file.")
    return path


def copy_in(folder: Path, name: str, target: Path) -> bool:
    """Copy the file `name` of a folder to `target`, with the mode of a new file; whether there is one.

    Raises:
        UsageError: as `file_in`.
        OSError: it cannot be copied.
    """
    path = file_in(folder, name)
    if path is not None:
        shutil.copyfile(path, target)
    return path is not None


def expanded(path: str | Path) -> Path:
    """A path with `~` as the user's home; where there is no such user, as it stands."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def empty_folder(path: Path, option: str) -> Path:
    """Check that a folder is new or empty, before anything is computed for it.

    Args:
        option: by which another is chosen, for the message.

    Raises:
        UsageError: it holds something, is a file, or is no name for a folder.
    """
    try:
        full = is_there(path) and (not path.is_dir() or any(path.iterdir()))
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


def check_inside(folder: Path) -> None:
    """Check a folder of a stranger's that is about to be written to: everything in it is a folder, a plain
    file, or a link to something in it.

    Raises:
        UsageError: something is not, or nobody may look.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{str(folder)!r} cannot be read: {_why(error)}.") from error

    for at, folders, names in os.walk(folder, onerror=refuse):
        here = Path(at).relative_to(folder)
        for name in names:
            file_in(folder, str(here / name))
        for name in folders:
            path = Path(at, name)
            if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
                raise UsageError(f"{str(path)!r} {_LEADS_OUT}; put the folder itself there.")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_bytes_in(folder: Path, name: str, limit: int) -> bytes | None:
    """What the file `name` of a folder holds, or `None` where there is none (see `file_in`).

    Raises:
        UsageError: it cannot be read, or has more than `limit` bytes.
    """
    path = file_in(folder, name)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{str(path)!r} cannot be read: {_why(error)}.") from error
    if len(data) > limit:
        raise UsageError(f"{str(path)!r} has more than {limit:,} bytes, which is the most that is read.")
    return data


def read_json_in(folder: Path, name: str, limit: int = _MAX_JSON) -> Any:
    """The JSON file `name` of a folder.

    Raises:
        UsageError: it is absent, too large, or not JSON; the message names the line.
    """
    data = read_bytes_in(folder, name, limit)
    if data is None:
        raise UsageError(f"{str(folder)!r} has no {name}.")
    path = str(folder / name)
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path!r} is not UTF-8 text: line {line}, byte {error.start}.") from error
    except RecursionError as error:
        raise UsageError(f"{path!r} is nested too deeply to be read.") from error
    except ValueError as error:  # its message has line and column
        raise UsageError(f"{path!r} is not valid JSON: {error}.") from error


def read_table_in(folder: Path, name: str, limit: int = _MAX_JSON) -> dict[str, Any]:
    """The JSON file `name` of a folder, which holds an object; errors as `read_json_in`."""
    value = read_json_in(folder, name, limit)
    if not isinstance(value, dict):
        raise UsageError(f"{str(folder / name)!r} does not hold a JSON object.")
    return value

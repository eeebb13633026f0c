"""Files that are written whole or not at all, and JSON that is read with a bound on its size."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError, UsageError

__all__ = ["plain", "read_json", "write_atomic", "write_json"]

_MAX_JSON = 16 << 20


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write to a temporary name in the same folder, flush to disk, then rename: never a half file under
    `path`.

    Raises:
        AutoPEFTError: the disk is full, or the folder is read-only or gone.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most 16 MiB.

    Raises:
        UsageError: the file is absent, too large, or holds no object.
    """
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UsageError(f"{path} is larger than {_MAX_JSON >> 20} MiB; it is not one of our files.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} has no {path.name}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} does not hold a JSON object.")
    return value

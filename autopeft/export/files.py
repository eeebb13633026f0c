"""JSON files: written whole or not at all, read with a bound on their size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autopeft.errors import UsageError
from autopeft.search.runfolder import write_atomic

__all__ = ["read_json", "write_json"]

_MAX_JSON = 16 << 20


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

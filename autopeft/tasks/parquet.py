"""Parquet files, read by pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopeft.errors import DataError
from autopeft.foreign import open_plain

__all__ = ["read_parquet"]


def read_parquet(path: Path, most: int) -> tuple[dict[str, list[Any]], dict[str, tuple[str, ...]]]:
    """The columns of a file of at most `most` bytes, and the names of classes that `datasets` noted in it.

    Raises:
        DataError: it is damaged, or names a column twice.
    """
    from pyarrow import parquet

    # The file object keeps pyarrow from reading anything into the name (partitions, URIs).
    with open_plain(path, most, DataError) as file, _as_data_error(path):
        table = parquet.ParquetFile(file).read()
    columns: dict[str, list[Any]] = {}
    for name in map(str, table.column_names):
        if name in columns:
            raise DataError(f"{path} names a column twice: {name!r:.80}.")
        with _as_data_error(path, f"column {name!r:.80}: "):
            columns[name] = table.column(len(columns)).to_pylist()
    return columns, _classes(table.schema.metadata or {})


@contextmanager
def _as_data_error(path: Path, what: str = "") -> Iterator[None]:
    import pyarrow

    try:
        yield
    # Beside its own errors pyarrow raises those of Python, of texts that are no UTF-8 and of times beyond its
    # calendar.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, MemoryError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a readable Parquet file: {what}{first}") from error


def _classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    from autopeft.tasks.readme import classes_of

    try:
        noted = json.loads(metadata.get(b"huggingface", b"null"))
        return classes_of(noted["info"]["features"]) if noted is not None else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}

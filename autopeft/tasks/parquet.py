"""Parquet files, which may say in a kilobyte that they hold gigabytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from autopeft.errors import DataError
from autopeft.foreign import open_plain

__all__ = ["read_parquet"]

# Repeated values cost a file nothing. What real data repeat (labels, ids) stays below these.
_ROWS, _SHARE = 1_000_000, 100
_FLOOR = 64 << 20
_BATCH = 1024
_POINTER = 8  # bytes


def read_parquet(path: Path, most: int) -> tuple[dict[str, list[Any]], dict[str, tuple[str, ...]]]:
    """The columns of a file of at most `most` bytes, and the names of classes that `datasets` noted in it.

    Raises:
        DataError: it is damaged, or unpacks to far more than its size.
    """
    from pyarrow import parquet

    # The file object keeps pyarrow from reading anything into the name (partitions, URIs).
    with open_plain(path, most, DataError) as file, _told(path):
        _check_unpacked(parquet.ParquetFile(file), file, path)
        file.seek(0)
        table = parquet.read_table(file)
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        with _told(path, f"column {name!r:.80}: "):
            columns[str(name)] = table.column(name).to_pylist()
    return columns, _classes(table.schema.metadata or {})


@contextmanager
def _told(path: Path, what: str = "") -> Iterator[None]:
    import pyarrow

    try:
        yield
    # Beside its own errors pyarrow raises those of Python, of texts that are no UTF-8 and of times beyond its
    # calendar.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, MemoryError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a readable Parquet file: {what}{first}") from error


def _check_unpacked(found: Any, file: IO[bytes], path: Path) -> None:
    """Count what a file unpacks to, texts by their dictionary, before they are unpacked."""
    from pyarrow import parquet

    names = found.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} names a column twice: {twice!r:.80}.")
    size = file.seek(0, 2)
    limit = max(_FLOOR, _SHARE * size)
    meta = found.metadata
    # Figures of single columns are left alone: pyarrow ends the process where a damaged file has wrong ones.
    packed = sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
    if meta.num_rows > max(_ROWS, size) or packed > limit:
        raise DataError(f"{path}: {meta.num_rows:,} rows in {size:,} bytes; this is no file of data.")
    texts = [c.path for c in map(found.schema.column, range(len(found.schema))) if _is_text(c)]
    if not texts:
        return
    file.seek(0)
    unpacked = 0
    for batch in parquet.ParquetFile(file, read_dictionary=texts).iter_batches(_BATCH, columns=texts):
        unpacked += sum(map(_unpacked, batch.columns))
        if unpacked > limit:
            raise DataError(
                f"{path}: more than {limit:,} bytes of text in {size:,} bytes; this is no file of data."
            )


def _is_text(column: Any) -> bool:
    """Whether a column of a file, or a part of a nested one, holds texts or bytes of any length."""
    return bool(column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL")


def _unpacked(array: Any) -> int:
    """Bytes of the texts in an array, however deep in lists and records, each as often as it stands there;
    and of what holds them together."""
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return int(pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return _POINTER * len(array) + sum(map(_unpacked, array.flatten()))
    if pyarrow.types.is_map(kind):
        return _POINTER * len(array) + _unpacked(array.keys) + _unpacked(array.items)
    lists = (pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list)
    if any(is_list(kind) for is_list in lists):
        return _POINTER * len(array) + _unpacked(array.flatten())
    return int(array.nbytes)


def _classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    from autopeft.tasks.readme import classes_of

    try:
        noted = json.loads(metadata.get(b"huggingface", b"null"))
        return classes_of(noted["info"]["features"]) if noted is not None else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}

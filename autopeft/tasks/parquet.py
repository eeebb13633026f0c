"""Parquet files, which may say in a kilobyte that they hold gigabytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from autopeft.errors import DataError
from autopeft.foreign import open_plain
from autopeft.tasks.parquet_pages import values_in_pages

__all__ = ["read_parquet"]

# Repeated values cost a file nothing. What real data repeat (labels, ids) stays below these.
_ROWS, _SHARE = 1_000_000, 100
_FLOOR = 64 << 20
_ROOM = 512 << 20  # of numbers and lists, of which padded tokens or columns of few ones pack a hundredfold
_BATCH = 1024
_FEW = 64
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
    """Count what a file unpacks to before it is unpacked: numbers by what headers say, texts by their
    dictionary."""
    names = found.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} names a column twice: {twice!r:.80}.")
    size = file.seek(0, 2)
    limit = max(_FLOOR, _SHARE * size)
    meta = found.metadata
    # pyarrow's figures of single columns are left alone: it ends the process where a damaged file has wrong
    # ones.
    packed = sum(meta.row_group(g).total_byte_size for g in range(meta.num_row_groups))
    if meta.num_rows > max(_ROWS, size) or packed > limit:
        raise DataError(f"{path}: {meta.num_rows:,} rows in {size:,} bytes; this is no file of data.")
    leaves = list(map(found.schema.column, range(len(found.schema))))
    nested = {i: _width_of_leaf(leaf) for i, leaf in enumerate(leaves) if leaf.max_repetition_level}
    values = meta.num_rows * sum(_width(field.type) for field in found.schema_arrow)
    room = max(_ROOM, limit)
    if values <= room and nested:
        values += values_in_pages(file, nested, room - values)
    if values > room:
        raise DataError(_too_much(path, "numbers and lists", room, size))
    texts = [leaf.path for leaf in leaves if _is_text(leaf)]
    read = list(dict.fromkeys([*texts, *(leaves[i].path for i in nested)]))
    most = {"text": limit, "lists": room}
    try:
        what = _more_than(most, file, texts, read, _BATCH)
    except OSError:  # "Not yet implemented", or damage, which the second reading meets too
        # Texts that are written by what they share have no dictionary. Few rows are unpacked at once then,
        # which bounds what lies in no list.
        if any(_is_text(leaf) and leaf.max_repetition_level for leaf in leaves):
            raise
        what = _more_than(most, file, texts, read, _FEW, dictionaries=False)
    if what is not None:
        raise DataError(_too_much(path, what, most[what], size))


def _more_than(
    most: Mapping[str, int],
    file: IO[bytes],
    texts: Sequence[str],
    read: Sequence[str],
    rows: int,
    *,
    dictionaries: bool = True,
) -> str | None:
    """Whether the columns to `read` unpack to more bytes of "text" or of "lists" than `most` allows: of
    which; counted in batches of some rows.

    Raises:
        OSError: pyarrow makes no dictionary of a text's encoding, or the file is damaged.
    """
    from pyarrow import parquet

    if not read:
        return None
    file.seek(0)
    found = parquet.ParquetFile(file, read_dictionary=texts if dictionaries else None)
    # A batch of two groups of rows would have two dictionaries, which pyarrow does not put together in lists.
    groups = (found.iter_batches(rows, [g], columns=read) for g in range(found.metadata.num_row_groups))
    worded = {name.split(".")[0] for name in texts}
    unpacked = dict.fromkeys(most, 0)
    for batch in chain.from_iterable(groups):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            what = "text" if name in worded else "lists"
            unpacked[what] += _unpacked(column)
            if unpacked[what] > most[what]:
                return what
    return None


def _too_much(path: Path, what: str, limit: int, size: int) -> str:
    return (
        f"{path}: more than {limit:,} bytes of {what} in {size:,} bytes; this is no file of data. Leave out "
        "the columns that repeat themselves, or write the table as JSON lines."
    )


def _is_text(column: Any) -> bool:
    """Whether a column of a file, or a part of a nested one, holds texts or bytes of any length."""
    return bool(column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL")


def _width_of_leaf(column: Any) -> int:
    """Bytes of a value in a list, and of its place in a list of Python; of texts those of the place alone."""
    return max(_POINTER, column.length) if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else _POINTER


def _width(kind: Any) -> int:
    """Bytes that each row of a column takes at least; lists of a fixed length have it in rows without a value
    too."""
    import pyarrow

    if isinstance(kind, pyarrow.BaseExtensionType):
        return _width(kind.storage_type)
    if pyarrow.types.is_dictionary(kind):
        return _width(kind.value_type)
    if pyarrow.types.is_fixed_size_list(kind):
        return _POINTER + int(kind.list_size) * _width(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return _POINTER + sum(_width(kind.field(i).type) for i in range(kind.num_fields))
    try:
        return max(_POINTER, int(kind.bit_width) // 8)
    except ValueError:  # of texts and lists, which have no width of their own
        return _POINTER


def _unpacked(array: Any) -> int:
    """Bytes of the texts and numbers in an array, however deep in lists and records, each as often as it
    stands there; and of what holds them together."""
    import pyarrow
    import pyarrow.compute

    kind = array.type
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _unpacked(array.storage)
    if pyarrow.types.is_dictionary(kind):
        if not _is_bytes(kind.value_type):
            return _width(kind) * len(array)
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return int(pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0)
    if pyarrow.types.is_struct(kind):
        return _POINTER * len(array) + sum(map(_unpacked, array.flatten()))
    if pyarrow.types.is_map(kind):
        return _POINTER * len(array) + _unpacked(array.keys) + _unpacked(array.items)
    if pyarrow.types.is_fixed_size_list(kind):
        return max(_width(kind) * len(array), _POINTER * len(array) + _unpacked(array.flatten()))
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return _POINTER * len(array) + _unpacked(array.flatten())
    return max(int(array.nbytes), _POINTER * len(array))


def _is_bytes(kind: Any) -> bool:
    """Whether values are texts or bytes of any length."""
    import pyarrow

    tests = ("is_string", "is_large_string", "is_binary", "is_large_binary")
    return any(getattr(pyarrow.types, test)(kind) for test in tests)


def _classes(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    from autopeft.tasks.readme import classes_of

    try:
        noted = json.loads(metadata.get(b"huggingface", b"null"))
        return classes_of(noted["info"]["features"]) if noted is not None else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}

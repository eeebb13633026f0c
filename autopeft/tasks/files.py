"""A user's own data: CSV, TSV, JSON, JSON lines, Parquet, or a folder in the hub's layout."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal

from autopeft.assets import writable_folder
from autopeft.errors import DataError
from autopeft.tasks.table import Table

__all__ = ["SUFFIXES", "lines_of", "read_file", "read_folder", "read_lines", "tables_of"]

_SPLIT_OF = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation"}
_SPLIT_OF |= {"dev": "validation", "validation_matched": "validation", "test": "test"}


def read_file(path: Path) -> Table:
    """Read one file by its suffix (see `SUFFIXES`); nothing is guessed about missing values.

    Raises:
        DataError: the suffix is unknown, or the file is damaged, empty or no table.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            f"{path} has the suffix {suffix!r}; files can be {', '.join(SUFFIXES)}, or a folder of them."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    columns = _READERS[suffix](path)
    if not columns:
        raise DataError(f"{path} has no rows.")
    return Table(str(path), columns, {})


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; an empty line is a line.

    Raises:
        DataError: there is no such file, or it is not UTF-8.
    """
    try:
        return lines_of(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def lines_of(content: bytes, where: str) -> list[str]:
    """The lines of a text in UTF-8; an empty line is a line, save after the last line's end.

    Raises:
        DataError: it is not UTF-8.
    """
    # Only line ends count: `splitlines` breaks at U+2028 and others, and rows would move.
    lines = _decoded(content, where).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_folder(path: Path) -> dict[str, Table]:
    """Read a folder in the hub's layout (`train*`, `validation*`, `test*` files, or as its README says).

    Returns the tables by split, `validation` and `test` only where there are such files.

    Raises:
        DataError: there are no data files, or `datasets` cannot read them.
    """
    import datasets

    if not any(file.suffix.lower() in SUFFIXES for file in path.rglob("*") if file.is_file()):
        raise DataError(f"The folder {path} has no data files; they can be {', '.join(SUFFIXES)}.")
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(str(path), cache_dir=str(writable_folder("datasets")))
    # datasets raises errors of pandas, pyarrow and its own, without a common base, for what it cannot read.
    except Exception as error:
        raise DataError(f"The folder {path} cannot be read: {_first_line(error)}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return tables_of(loaded, str(path))


def tables_of(loaded: Mapping[str, Any], where: str) -> dict[str, Table]:
    """The splits of a `datasets.DatasetDict` as tables, without a test split whose labels are hidden (-1)."""
    found: dict[str, Table] = {}
    for name, split in loaded.items():
        key = _SPLIT_OF.get(str(name))
        if key is None or key in found:
            continue
        columns = {column: split[column][:] for column in split.column_names}
        names = {
            column: tuple(feature.names)
            for column, feature in split.features.items()
            if hasattr(feature, "names")
        }
        # Leader boards hide test labels as -1, in numbers (STS-B) as in classes.
        labelled = [column for column in columns if column in names or column.lower() in {"label", "labels"}]
        if key == "test" and any(set(columns[column]) == {-1} for column in labelled):
            continue
        found[key] = Table(f"{where} ({name})", columns, names)
    if "train" not in found:
        raise DataError(f"{where} has no train split; it has {', '.join(map(str, loaded))}.")
    return found


def _read_csv(path: Path) -> dict[str, list[Any]]:
    content = _text(path)
    header = content.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    return _parsed(path, content, delimiter, csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> dict[str, list[Any]]:
    """Quotes count only where every record then stays on its line; else they are ordinary characters."""
    content = _text(path)
    try:
        columns = _parsed(path, content, "\t", csv.QUOTE_MINIMAL)
    except DataError:
        return _parsed(path, content, "\t", csv.QUOTE_NONE)
    if any("\n" in value for values in columns.values() for value in values):
        return _parsed(path, content, "\t", csv.QUOTE_NONE)
    return columns


def _parsed(path: Path, content: str, delimiter: str, quoting: Literal[0, 3]) -> dict[str, list[Any]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        records = _records(reader)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    if not records:
        raise DataError(f"{path} is empty.")
    header, *rows = records
    if len(set(header)) < len(header):
        raise DataError(f"{path} names a column twice: {', '.join(map(repr, header))}.")
    odd = [i + 1 for i, row in enumerate(rows) if len(row) != len(header)]
    if odd:
        raise DataError(
            f"{path}: {len(odd):,} rows do not have the header's {len(header)} fields; the first is row "
            f"{odd[0]}. Is a quotation mark missing?"
        )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _records(reader: Iterable[list[str]]) -> list[list[str]]:
    """Header and rows. An empty line is no row, unless there is one column: there it is an empty value."""
    found = dropwhile(lambda record: not record, reader)
    header = next(found, None)
    if header is None:
        return []
    if len(header) == 1:
        return [header, *(record or [""] for record in found)]
    return [header, *(record for record in found if record)]


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    records = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            records.append(_json(line, f"{path}, line {number}"))
    return _of_records(path, records)


def _read_json(path: Path) -> dict[str, list[Any]]:
    """A list of objects, an object of lists, or JSON lines under the wrong suffix."""
    content = _text(path)
    try:
        found = json.loads(content)
    except ValueError as error:
        if len(content.strip().split("\n")) > 1 and content.lstrip().startswith("{"):
            return _read_jsonl(path)
        raise DataError(f"{path} is not JSON: {error}.") from error
    if isinstance(found, dict) and found and all(isinstance(v, list) for v in found.values()):
        if len({len(values) for values in found.values()}) > 1:
            raise DataError(f"{path}: its columns have different numbers of rows.")
        return found
    return _of_records(path, found if isinstance(found, list) else [found])


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # The file object keeps pyarrow from reading anything into the name (partitions, URIs).
        with path.open("rb") as file:
            table = parquet.read_table(file)
        return {str(name): table.column(name).to_pylist() for name in table.column_names}
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {_first_line(error)}") from error


_READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
SUFFIXES: tuple[str, ...] = tuple(_READERS)


def _of_records(path: Path, records: Iterable[Any]) -> dict[str, list[Any]]:
    listed = list(records)
    for number, record in enumerate(listed, start=1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number} is not an object with a text and a label.")
    names = dict.fromkeys(name for record in listed for name in record)
    return {name: [record.get(name) for record in listed] for name in names}


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.") from error


def _text(path: Path) -> str:
    return _decoded(path.read_bytes(), str(path))


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

"""A user's own data in a file: CSV, TSV, JSON, JSON lines, Parquet or CoNLL; `folders.py` reads folders of
them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal

from autopeft.errors import DataError
from autopeft.foreign import read_plain
from autopeft.tasks.conll import CONLL_SUFFIXES, read_sentences
from autopeft.tasks.images import ImageFile
from autopeft.tasks.parquet import read_parquet
from autopeft.tasks.squad import is_squad, squad_columns
from autopeft.tasks.table import Table, is_unicode

__all__ = [
    "MOST_BYTES",
    "SUFFIXES",
    "lines_of",
    "read_file",
    "read_lines",
    "read_part",
    "splits_of",
    "tables_of",
]

MOST_BYTES = 2 << 30
"""Of a file of data or texts, which is read whole."""
_FEW_PLACES, _SPARSE = 1_000_000, 20
"""Rows times columns of JSON records, where few are filled, and how many for each that is filled."""

_NOT_CLOSED = "unexpected end of data"  # what `csv` says of a file that ends within quotation marks

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
    return Table(str(path), _columns(path, _READERS[suffix](path)), {})


def read_part(path: Path) -> Table:
    """Read one file of a task: as `read_file`, with the names of classes that a Parquet file notes."""
    if path.suffix.lower() != ".parquet":
        return read_file(path)
    columns, classes = read_parquet(path, MOST_BYTES)
    return Table(str(path), _columns(path, columns), classes)


def _columns(path: Path, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    if not columns:
        raise DataError(f"{path} has no rows.")
    for name in columns:
        if not is_unicode(name):
            raise DataError(f"{path}: a column is called {name!r:.80}, which is not Unicode; rename it.")
    return columns


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; an empty line is a line.

    Raises:
        DataError: there is no such file, it is none, it is too large, or it is not UTF-8.
    """
    return lines_of(read_plain(path, MOST_BYTES, DataError), str(path))


def lines_of(content: bytes, where: str) -> list[str]:
    """The lines of a text in UTF-8; an empty line is a line, save after the last line's end.

    Raises:
        DataError: it is not UTF-8.
    """
    # Only line ends count: `splitlines` breaks at U+2028 and others, and rows would move.
    lines = _decoded(content, where).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def tables_of(loaded: Mapping[str, Any], where: str) -> dict[str, Table]:
    """The splits of a `datasets.DatasetDict` as tables, without a test split whose labels are hidden (-1)."""
    found = {}
    for name, split in loaded.items():
        if str(name) not in _SPLIT_OF:
            continue
        columns = _columns_of(split)
        # Of a list of classes `feature` says what is in it.
        kinds = {column: getattr(kind, "feature", kind) for column, kind in split.features.items()}
        names = {column: tuple(kind.names) for column, kind in kinds.items() if hasattr(kind, "names")}
        found[str(name)] = Table(f"{where} ({name})", columns, names)
    return splits_of(found, where, list(map(str, loaded)))


def _columns_of(split: Any) -> dict[str, list[Any]]:
    """The columns of a `datasets.Dataset`, its images as they are stored, which nobody has decoded yet.

    The files that these name are read: whoever made the data set in this process had them. A format that it
    has been given for training (`with_format("torch")`) says nothing of its rows.
    """
    import datasets

    split = split.with_format(None)
    images = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
    for name in images:
        split = split.cast_column(name, datasets.Image(decode=False))
    columns = {column: split[column][:] for column in split.column_names}
    return columns | {name: [_stored(value) for value in columns[name]] for name in images}


def _stored(value: Any) -> Any:
    named = value is not None and value["bytes"] is None and value["path"] is not None
    return ImageFile.of_file(Path(value["path"])) if named else value


def splits_of(tables: Mapping[str, Table], where: str, names: list[str] | None = None) -> dict[str, Table]:
    """The tables of train, validation and test, in this order, among those of any name.

    A test split whose labels are hidden (-1) is left out. `names` are those of all splits that there are.

    Raises:
        DataError: there is no train split.
    """
    found: dict[str, Table] = {}
    for name, table in tables.items():
        key = _SPLIT_OF.get(name)
        if key is None or key in found or (key == "test" and _is_hidden(table)):
            continue
        found[key] = table
    if "train" not in found:
        told = ", ".join((names or list(tables))[:12])
        raise DataError(f"{where} has no train split; it has {told}.")
    return {key: found[key] for key in ("train", "validation", "test") if key in found}


def _is_hidden(table: Table) -> bool:
    """Whether a leader board hides the labels as -1, in numbers (STS-B) as in classes."""
    labelled = [c for c in table.columns if c in table.label_names or c.lower() in {"label", "labels"}]
    return any(len(table) and all(value == -1 for value in table.columns[column]) for column in labelled)


def _read_csv(path: Path) -> dict[str, list[Any]]:
    content = _text(path)
    header = content.split("\n", 1)[0]
    delimiter = max(",;\t|", key=header.count)
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
    ended = 0  # the last line of the record before

    def read() -> Iterator[list[str]]:
        nonlocal ended
        for record in reader:
            ended = reader.line_num
            yield record

    try:
        with _long_fields():
            records = _records(read())
    except csv.Error as error:
        if str(error) == _NOT_CLOSED:
            raise DataError(
                f"{path}: the quotation mark that opens in the row at line {ended + 1} is never closed. "
                "Close it, or write one that belongs to the text twice, in a quoted field."
            ) from error
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


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let `csv` read texts of any length: a book may be one field. The limit is the whole process's."""
    before = csv.field_size_limit(MOST_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


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
    """A list of objects, an object of lists, SQuAD's layout, or JSON lines under the wrong suffix."""
    content = _text(path)
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to be a table.") from error
    except ValueError as error:
        if _is_object(content.lstrip().split("\n", 1)[0]):
            return _read_jsonl(path)
        raise DataError(f"{path} is not JSON: {error}.") from error
    if is_squad(found):
        return squad_columns(found, str(path), len(content))
    if isinstance(found, dict) and found and all(isinstance(v, list) for v in found.values()):
        if len({len(values) for values in found.values()}) > 1:
            raise DataError(f"{path}: its columns have different numbers of rows.")
        return found
    return _of_records(path, found if isinstance(found, list) else [found])


def _read_conll(path: Path) -> dict[str, list[Any]]:
    return {name: list(rows) for name, rows in read_sentences(_text(path).split("\n"), str(path)).items()}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    return read_parquet(path, MOST_BYTES)[0]


_READERS: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
    **dict.fromkeys(CONLL_SUFFIXES, _read_conll),
}
SUFFIXES: tuple[str, ...] = tuple(_READERS)


def _of_records(path: Path, records: Iterable[Any]) -> dict[str, list[Any]]:
    listed = list(records)
    for number, record in enumerate(listed, start=1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number} is not an object with a text and a label.")
    names = dict.fromkeys(name for record in listed for name in record)
    places, filled = len(names) * len(listed), sum(map(len, listed))
    if places > max(_FEW_PLACES, _SPARSE * filled):
        raise DataError(
            f"{path}: its {len(listed):,} rows have {len(names):,} different keys and {filled:,} values; a "
            "table has much the same keys in every row."
        )
    return {name: [record.get(name) for record in listed] for name in names}


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply to be a row.") from error
    except json.JSONDecodeError as error:  # its own words count a line of one
        raise DataError(f"{where} is not JSON: {error.msg}, at its character {error.pos + 1}.") from error
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}.") from error


def _text(path: Path) -> str:
    content = read_plain(path, MOST_BYTES, DataError)
    if not content:
        raise DataError(f"{path} is empty.")
    return _decoded(content, str(path))


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error

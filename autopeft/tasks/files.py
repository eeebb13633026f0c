"""A file of rows: CSV, TSV, JSON, JSON lines, Parquet, or sentences in CoNLL's layout.

`datasets` would read most of these, and other rows would come of some. Its CSV fills a row that is too short,
and shifts the columns of a file whose rows have a field more than the header. Its JSON turns texts that look
like dates into times and ids of 20 digits into rounded numbers. Here a value stays what the file says, and
an error names its row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal

from autopeft.errors import DataError
from autopeft.foreign import open_plain, read_plain
from autopeft.tasks.memory import class_names
from autopeft.tasks.table import Table, is_unicode

__all__ = ["MOST_BYTES", "SUFFIXES", "lines_of", "read_file", "read_lines"]

MOST_BYTES = 2 << 30
"""Of a file of data or texts, which is read whole."""

_CONLL = (".conll", ".bio", ".iob", ".iob2")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", *_CONLL)
_DOCUMENT = "-DOCSTART-"  # CoNLL's line between documents
_NOT_CLOSED = "unexpected end of data"  # what `csv` says of a file that ends within quotation marks

Columns = dict[str, list[Any]]


def read_file(path: Path) -> Table:
    """The rows of one file, by its suffix (see `SUFFIXES`), and the names of classes that Parquet notes.

    Raises:
        DataError: the suffix is unknown, or the file is damaged, empty or no table.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path} has the suffix {suffix!r}; files can be {', '.join(SUFFIXES)}, or a folder of them."
        )
    classes: dict[str, tuple[str, ...]] = {}
    if suffix == ".parquet":
        columns, classes = _read_parquet(path)
    else:
        content = read_plain(path, MOST_BYTES, DataError)
        if not content:
            raise DataError(f"{path} is empty.")
        text = _decoded(content, str(path))
        if suffix == ".csv":
            header = text.split("\n", 1)[0]
            columns = _parsed(path, text, max(",;\t|", key=header.count), csv.QUOTE_MINIMAL)
        elif suffix == ".tsv":
            # Quotes count only where every record then stays on its line; else they are ordinary characters.
            try:
                columns = _parsed(path, text, "\t", csv.QUOTE_MINIMAL)
                plain = any("\n" in value for values in columns.values() for value in values)
            except DataError:
                plain = True
            columns = _parsed(path, text, "\t", csv.QUOTE_NONE) if plain else columns
        elif suffix == ".json":
            columns = _read_json(path, text)
        elif suffix in _CONLL:
            columns = _read_conll(path, text)
        else:
            columns = _read_json_lines(path, text)
    if not columns:
        raise DataError(f"{path} has no rows.")
    for name in columns:
        if not is_unicode(name):
            raise DataError(f"{path}: a column is called {name!r:.80}, which is not Unicode; rename it.")
    return Table(str(path), columns, classes)


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


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error


# CSV and TSV
# ------------------------------------------------------------------------------------------------------


def _parsed(path: Path, text: str, delimiter: str, quoting: Literal[0, 3]) -> Columns:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    records: list[list[str]] = []
    ended = 0  # the last line of the record before
    before = csv.field_size_limit(MOST_BYTES)  # a book may be one field
    try:
        for record in reader:
            records.append(record)
            ended = reader.line_num
    except csv.Error as error:
        if str(error) == _NOT_CLOSED:
            raise DataError(
                f"{path}: the quotation mark that opens in the row at line {ended + 1} is never closed. "
                "Close it, or write one that belongs to the text twice, in a quoted field."
            ) from error
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error
    finally:
        csv.field_size_limit(before)
    records = list(dropwhile(lambda record: not record, records))
    if not records:
        raise DataError(f"{path} is empty.")
    header, *rows = records
    if len(set(header)) < len(header):
        raise DataError(f"{path} names a column twice: {', '.join(map(repr, header))}.")
    # An empty line is no row, unless there is one column: there it is an empty value.
    rows = [row or [""] for row in rows] if len(header) == 1 else [row for row in rows if row]
    odd = [i + 1 for i, row in enumerate(rows) if len(row) != len(header)]
    if odd:
        raise DataError(
            f"{path}: {len(odd):,} rows do not have the header's {len(header)} fields; the first is row "
            f"{odd[0]}. Is a quotation mark missing?"
        )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


# JSON
# ------------------------------------------------------------------------------------------------------


def _read_json(path: Path, text: str) -> Columns:
    """A list of objects, an object of lists, SQuAD's layout, or JSON lines under the wrong suffix."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0].rstrip()
        if first.startswith("{") and first.endswith("}"):
            return _read_json_lines(path, text)
        raise DataError(f"{path} is not JSON: {error}.") from error
    if isinstance(found, list):
        return _of_records(path, found)
    articles = found.get("data") if isinstance(found, dict) else None
    if isinstance(articles, list) and articles and "paragraphs" in articles[0]:
        return _of_squad(path, articles)
    if isinstance(found, dict) and found and all(isinstance(values, list) for values in found.values()):
        if len({len(values) for values in found.values()}) > 1:
            raise DataError(f"{path}: its columns have different numbers of rows.")
        return found
    return _of_records(path, [found])


def _read_json_lines(path: Path, text: str) -> Columns:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:  # its own words count a line of one
                why = f"{error.msg}, at its character {error.pos + 1}"
                raise DataError(f"{path}, line {number} is not JSON: {why}.") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is not JSON: {error}.") from error
    return _of_records(path, records)


def _of_records(path: Path, records: Sequence[Any]) -> Columns:
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number} is not an object with a text and a label.")
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _of_squad(path: Path, articles: Sequence[Any]) -> Columns:
    """SQuAD's own layout: a row for each question, in their order; `answers` where a question has some.

    `{"data": [{"title": …, "paragraphs": [{"context": …, "qas": [{"question": …, "answers": […]}]}]}]}`
    """
    columns: Columns = {"id": [], "title": [], "question": [], "context": [], "answers": []}
    for number, article in enumerate(articles, start=1):
        try:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    columns["title"].append(article.get("title"))
                    columns["context"].append(paragraph.get("context"))
                    for name in ("id", "question", "answers"):
                        columns[name].append(question.get(name))
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}: article {number} is not in SQuAD's layout: it has a list 'paragraphs', each of "
                "them a 'context' and a list 'qas', and each of these is an object with a 'question'."
            ) from error
    if all(value is None for value in columns["answers"]):
        del columns["answers"]
    return columns


# Parquet and CoNLL
# ------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path) -> tuple[Columns, dict[str, tuple[str, ...]]]:
    """The columns, and the names of classes that `datasets` noted in the file."""
    import pyarrow
    from pyarrow import parquet

    columns: Columns = {}
    classes: dict[str, tuple[str, ...]] = {}
    at = ""
    try:
        # The file object keeps pyarrow from reading anything into the name (partitions, URIs).
        with open_plain(path, MOST_BYTES, DataError) as file:
            table = parquet.ParquetFile(file).read()
        for i, name in enumerate(table.column_names):
            at = f"column {name!r}: "
            columns[name] = table.column(i).to_pylist()
        if b"huggingface" in (table.schema.metadata or {}):
            from datasets import Features

            at = "what datasets noted in it: "
            classes = class_names(Features.from_arrow_schema(table.schema))
    # Beside its own errors pyarrow raises those of Python, of texts that are no UTF-8 and of times beyond its
    # calendar.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a readable Parquet file: {at}{first}") from error
    if len(columns) < len(table.column_names):
        raise DataError(f"{path} names a column twice: {', '.join(map(repr, table.column_names))}.")
    return columns, classes


def _read_conll(path: Path, text: str) -> Columns:
    """A row for each sentence, whose words stand on a line each: `tokens` are the first field of these lines,
    `tags` the last, and fields between them `column_2`, `column_3`, … Fields are parted by tabs where a line
    has one, else by white space; an empty line ends a sentence. Words alone have no `tags`."""
    sentences: list[list[list[str]]] = [[]]
    width = 0
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == _DOCUMENT:
            sentences.append([])
            continue
        width = width or len(fields)
        if len(fields) != width or not all(field.strip() for field in fields):
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, but those before have {width}, none of them "
                "empty; each line is a word and its tags, and an empty line ends a sentence."
            )
        sentences[-1].append(fields)
    whole = [sentence for sentence in sentences if sentence]
    if not whole:
        raise DataError(f"{path} has no words.")
    names = ["tokens", *(f"column_{i}" for i in range(2, width)), *(["tags"] if width > 1 else [])]
    return {name: [[fields[i] for fields in own] for own in whole] for i, name in enumerate(names)}

"""The file of answers: CSV or JSON lines, row for row."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import UsageError
from autopeft.foreign import local_path
from autopeft.runs.files import escaped, is_there, plain, write_atomic

__all__ = ["OUT_SUFFIXES", "check_out", "write_answers"]

OUT_SUFFIXES = (".csv", ".jsonl")
_FORMULA = (*"=+-@＝＋－＠", "\t", "\n")  # how what a spreadsheet runs begins


def check_out(value: str | Path) -> None:
    """Refuse a file that answers cannot be written to, before anything is computed.

    Raises:
        UsageError: it has another suffix, is there already, or its folder is not.
    """
    path = local_path(value)
    if path.suffix.lower() not in OUT_SUFFIXES:
        raise UsageError(f"Answers are written as {' or '.join(OUT_SUFFIXES)}, but got out={str(path)!r}.")
    if is_there(path):
        raise UsageError(f"{path} is there already; choose another --out, or remove it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} to.")


def write_answers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write answers as CSV or as JSON lines, numbered from 1 in the column `row`.

    In a CSV a nested value has a column of its own (`probabilities.yes`), and a list of texts is one cell,
    with spaces between words and commas between longer texts, `?` for one that is not there; figures that are
    not finite are empty there, and null in JSON.

    Texts come from strangers and from models. JSON lines hold them unchanged, with what a terminal acts on or
    hides by its number. A CSV cannot say such letters: controls become `�`, and a text that a spreadsheet
    would take for a formula has a `'` in front (OWASP, "CSV Injection"); a number is none.

    Raises:
        AutoPEFTError: the file cannot be written.
    """
    numbered = [{"row": i, **plain(row)} for i, row in enumerate(rows, start=1)]
    if path.suffix.lower() == ".csv":
        content = _csv([dict(_flat(row)) for row in numbered])
    else:
        content = "".join(escaped(json.dumps(row, ensure_ascii=False)) + "\n" for row in numbered)
    # Text that could not be answered may hold halves of surrogate pairs, which no file can.
    write_atomic(path, content.encode("utf-8", "replace"))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_cell, names))
    writer.writerows([_cell(row.get(name)) for name in names] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    """A value as a cell that nothing acts on."""
    if not isinstance(value, str):
        return value
    lines = value.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in lines)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(part, str) for part in value):
        texts = ["?" if part is None else str(part) for part in value]
        yield name, (" " if all(len(text.split()) == 1 for text in texts) else ", ").join(texts)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _flat(part, f"{name}.{i}")
    else:
        yield name, value

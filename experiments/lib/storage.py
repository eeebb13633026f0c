"""Results in files that grow while an experiment runs: an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

__all__ = ["Balance", "Kept", "append_row", "read_rows", "write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a file all at once or not at all; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)


# JSON lines
# ---------------------------------------------------------------------------------------------------------


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line to a file of JSON lines, after one that a killed process left cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if size := file.seek(0, os.SEEK_END):
            file.seek(size - 1)
            if file.read(1) != b"\n":
                data = path.read_bytes()
                file.truncate(data.rfind(b"\n") + 1)
        file.write((json.dumps(row) + "\n").encode())


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, without a last line that is not whole; `[]` without a file."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


class Balance:
    """Results by key in a file of JSON lines, one line each.

    A line that was cut off in the middle of writing is dropped, and what it stood for is measured again. Of
    several lines of one key the last counts. `fresh` starts with an empty file.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.unlink(missing_ok=True)
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in read_rows(path)}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.rows[key]

    def forget(self, which: Callable[[Mapping[str, Any]], bool]) -> None:
        """Drop every row that `which` says yes to, from the file as well."""
        self.rows = {key: row for key, row in self.rows.items() if not which(row)}
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in self.rows.values()))

    def add(self, key: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row under `key` and return it."""
        full = {"key": key, **row}
        append_row(self.path, full)
        self.rows[key] = full
        return full


# One JSON file
# ---------------------------------------------------------------------------------------------------------


class Kept:
    """Results by key in a JSON file, written after each.

    Results that were made from another recording are dropped. Several processes may each make some.

    Args:
        about: what the results were made from; results in the file that say otherwise are dropped.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self.about = about
        self.results: dict[str, Any] = {}
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["about"] == json.loads(json.dumps(self.about)):
                self.results = found["results"] | self.results

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of a key, made if it is not there."""
        if key not in self.results:
            self.results[key] = make()
            with FileLock(self._path.with_suffix(".lock")):
                self._read()
                text = json.dumps({"about": self.about, "results": self.results}, indent=1)
                write_whole(self._path, text + "\n")
        return self.results[key]

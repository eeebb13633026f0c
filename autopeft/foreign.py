"""Paths and files from strangers: looked at before they are opened, and opened only as plain files."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from autopeft.errors import UsageError

__all__ = [
    "check_inside",
    "file_in",
    "in_folder",
    "local_path",
    "open_plain",
    "parse_json",
    "read_json_in",
    "read_plain",
    "read_table_in",
    "table_of",
]

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes; Linux takes 255 and 4,096
_MOST_JSON = 8 << 20  # bytes, which take up to 32 times as much memory
_DEEPEST = 100  # tables and lists in each other
_LEADS_OUT = "is a link that leads out of its folder, and is not followed"
_SNAPSHOT = re.compile(r"(.*/[a-z]+--[^/]+)/snapshots/[^/]+(/|$)")  # of the hub's cache


def local_path(given: str | Path, error: type[UsageError] = UsageError) -> Path:
    """A path as people type it, with `~` as the home folder. Nothing needs to be there.

    Raises:
        UsageError: no file can have this name, or it is in the home folder of nobody. `error` says which
            class of it.
    """
    text = str(given)
    try:
        raw = text.encode()
    except UnicodeEncodeError as wrong:
        raise error(f"{text!r:.80} is no path: it holds what is not Unicode.") from wrong
    if "\0" in text:
        raise error(f"{text!r:.80} is no path: it holds a null character.")
    if len(raw) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in raw.split(b"/")):
        raise error(
            f"{text!r:.80}… is no path: a part of it is longer than the {_LONGEST_NAME} bytes of a file's."
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as wrong:
        raise error(
            f"{text!r} is in the home folder of a user that is not known here; write the folder out."
        ) from wrong


def open_plain(path: Path, most: int, error: type[UsageError] = UsageError) -> IO[bytes]:
    """Open a plain file of at most `most` bytes for reading.

    Devices, pipes and sockets are refused without waiting for what they might give.

    Raises:
        UsageError: it is not there, cannot be read, is no plain file or is larger. `error` says which class
            of it.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as wrong:
        reason = getattr(wrong, "strerror", None) or str(wrong)
        raise error(f"{path}: cannot be read ({reason}).") from wrong
    try:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise error(f"{path} is a folder; name a file in it.")
        if not stat.S_ISREG(found.st_mode):
            raise error(
                f"{path} is no plain file but a device, a pipe or a socket; copy what it gives into a file."
            )
        if found.st_size > most:
            raise error(f"{path}: {found.st_size:,} bytes, and at most {_size(most)} are read.")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_plain(path: Path, most: int, error: type[UsageError] = UsageError) -> bytes:
    """What a plain file of at most `most` bytes holds (errors: see `open_plain`)."""
    with open_plain(path, most, error) as file:
        try:
            # A file may grow while it is read.
            found = file.read(most + 1)
        except OSError as wrong:
            raise error(f"{path}: cannot be read ({wrong.strerror}).") from wrong
    if len(found) > most:
        raise error(f"{path}: more than {_size(most)}, which are the most that are read.")
    return found


def _size(number: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit and number % unit == 0:
            return f"{number // unit} {name}"
    return f"{number:,} bytes"


def in_folder(path: str, folder: Path) -> bool:
    """Whether a path that a file in `folder` names, relative to it, stays inside, links included. Nothing
    needs to be there.

    In a snapshot of the hub's cache links lead to the blobs beside it, which count as inside.
    """
    try:
        return _holds(Path(os.path.realpath(folder)), Path(os.path.realpath(folder / local_path(path))))
    except UsageError:
        return False


def _holds(root: Path, found: Path) -> bool:
    """Whether a folder holds a file, or the hub's cache keeps it for the folder; both without links."""
    snapshot = _SNAPSHOT.match(root.as_posix())
    return found.is_relative_to(root) or (
        snapshot is not None and found.is_relative_to(Path(snapshot[1], "blobs"))
    )


def file_in(folder: Path, name: str, error: type[UsageError] = UsageError) -> Path | None:
    """The plain file `name` of a folder, or `None` where there is none.

    A folder may come from a stranger, so a link in it may not lead out of it (see `in_folder`), also where
    nothing is there yet.

    Raises:
        UsageError: a link leads out of the folder, or it is no plain file, or nobody may look. `error` says
            which class of it.
    """
    path = folder / name
    plain_file: bool | None
    try:
        root, found = folder.resolve(strict=True), path.resolve(strict=True)
        plain_file = stat.S_ISREG(found.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        # Whoever opens a link for writing makes the file that it leads to.
        root, found = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
        plain_file = None
    except RuntimeError as wrong:  # links that lead to themselves
        raise error(f"{str(path)!r} cannot be read: it is a link to itself.") from wrong
    except (OSError, ValueError) as wrong:
        raise error(f"{str(path)!r} cannot be read: {_why(wrong)}.") from wrong
    if not _holds(root, found):
        raise error(f"{str(path)!r} {_LEADS_OUT}; put the file itself there.")
    if plain_file is None:
        return None
    if not plain_file:
        raise error(f"{str(path)!r} is not a plain file but a folder, a device, a pipe or a socket.")
    return path


def check_inside(folder: Path) -> None:
    """Check a folder of a stranger's that is about to be written to: everything in it is a folder, a plain
    file, or a link to something in it.

    Raises:
        UsageError: something is not, or nobody may look.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"{str(folder)!r} cannot be read: {_why(error)}.") from error

    for at, folders, names in os.walk(folder, onerror=refuse):
        here = Path(at).relative_to(folder)
        for name in names:
            file_in(folder, str(here / name))
        for name in folders:
            path = Path(at, name)
            if path.is_symlink() and not _holds(folder.resolve(), path.resolve()):
                raise UsageError(f"{str(path)!r} {_LEADS_OUT}; put the folder itself there.")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: it is none, or is nested more deeply than whatever goes through it could follow.
    """
    too_deep = ValueError(f"it is nested too deeply: more than {_DEEPEST} tables or lists in each other")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise too_deep from error
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_DEEPEST):
        inner = (part for at in level for part in (at.values() if isinstance(at, dict) else at))
        level = [part for part in inner if isinstance(part, (dict, list))]
        if not level:
            return value
    raise too_deep


def read_json_in(folder: Path, name: str, most: int = _MOST_JSON) -> Any:
    """The value in the JSON file `name` of a folder, of at most `most` bytes.

    Raises:
        UsageError: it is not there, cannot be read (see `file_in` and `open_plain`), or is not JSON; the
            message names the line.
    """
    path = file_in(folder, name)
    if path is None:
        raise UsageError(f"{str(folder)!r} has no {name}.")
    data = read_plain(path, most)
    try:
        return parse_json(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{str(path)!r} is not UTF-8 text: line {line}, byte {error.start}.") from error
    except ValueError as error:  # its message has line and column
        raise UsageError(f"{str(path)!r} is not valid JSON: {error}.") from error


def read_table_in(folder: Path, name: str, most: int = _MOST_JSON) -> dict[str, Any]:
    """The object in the JSON file `name` of a folder; errors as `read_json_in`."""
    value = read_json_in(folder, name, most)
    if not isinstance(value, dict):
        raise UsageError(f"{str(folder / name)!r} does not hold a JSON object.")
    return value


def table_of(value: object) -> Mapping[str, Any]:
    """What a stranger's file has where a table belongs; an empty one where that is none."""
    return value if isinstance(value, Mapping) else {}

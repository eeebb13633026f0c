"""Paths and files from strangers: looked at before they are opened, and opened only as plain files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from autopeft.errors import UsageError

__all__ = ["in_folder", "local_path", "open_plain", "read_plain"]

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes; Linux takes 255 and 4,096


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
    """Whether a path that a file in `folder` names, relative to it, stays inside, links included."""
    try:
        target = Path(os.path.realpath(folder / local_path(path)))
    except UsageError:
        return False
    return target.is_relative_to(os.path.realpath(folder))

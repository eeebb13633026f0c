"""The folder of a private Ray, which its owner alone can enter, and what killed searches have left of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["RAY", "end_processes", "private_folder", "processes_of"]

RAY = "r"  # what Ray is given: it lets everyone into its folder, but nobody else gets as far as that
_PREFIX, _NEW, _LOCK = "apf-", "apn-", "in-use"
# Ray appends up to 65 bytes to its folder for a socket, as in
# /session_2026-11-26_18-29-18_380436_1234567/sockets/plasma_store.1, and a path of one holds 107.
_LONGEST_ROOT = 24
_END_SECONDS = 5.0


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A new temporary folder that nobody else can enter; Ray's own is `RAY` in it.

    In the end what is left of Ray there is ended. So is what processes have left that were killed, and their
    folders are removed.
    """
    root = _root()
    _sweep(root)
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=root))
    lock = os.open(new / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Only now has it a name under which others look for what is not in use.
    folder = root / f"{_PREFIX}{new.name.removeprefix(_NEW)}"
    new.rename(folder)
    try:
        yield folder
    finally:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _root() -> Path:
    root = Path(tempfile.gettempdir())
    if len(os.fsencode(root)) > _LONGEST_ROOT and os.access("/tmp", os.W_OK):
        return Path("/tmp")
    return root


def _sweep(root: Path) -> None:
    """Remove what killed processes of this user have left."""
    for folder in root.glob(f"{_PREFIX}*"):
        lock = _taken(folder)
        if lock is not None:
            try:
                end_processes(folder)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _taken(folder: Path) -> int | None:
    """The lock of a folder of one's own that no process holds any more; other people's are left alone."""
    try:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return None
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def end_processes(folder: Path) -> None:
    """Kill what is left of the Ray whose folder this is; nobody may need it any more."""
    found = processes_of(folder)
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=_END_SECONDS)


def processes_of(folder: Path) -> list[psutil.Process]:
    """This user's processes that are Ray's, and that name the folder or have a file in it open.

    Ray's agents and workers overwrite their command line and their environment with a title; what they log
    stays open.
    """
    inside = f"{folder}{os.sep}"
    found = []
    for process in psutil.process_iter():
        try:
            if process.uids().real != os.getuid() or process.pid == os.getpid():
                continue
            words = process.cmdline()
            if _is_rays(words) and (
                any(inside in word for word in words)
                or any(file.path.startswith(inside) for file in process.open_files())
            ):
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile
    return found


def _is_rays(words: list[str]) -> bool:
    """Whether it is a program of Ray's, not somebody's look at its logs."""
    return any(word.startswith("ray::") for word in words[:1]) or any(
        "ray" in Path(word).parts and ("core" in Path(word).parts or word.endswith(".py"))
        for word in words[:3]
    )

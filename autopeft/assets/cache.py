"""The cache folder, and folders in it that exist only when they are complete.

What lies there is checked against its SHA-256 before it is used. A cache that cannot be written costs time
alone: what cannot be kept is made again.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from platformdirs import user_cache_dir

from autopeft.errors import AssetError

__all__ = [
    "PACKAGED",
    "SPARE_DISK",
    "cache_dir",
    "cache_folder",
    "intact",
    "make_room",
    "publish",
    "seal",
    "sha256_of",
    "spare_folder",
    "warn_once",
    "writable_folder",
]

PACKAGED = "assets"  # the folder of models and tokenizers from packages, which are public
SPARE_DISK = 1 << 30  # bytes that are left free on the disk
_SUMS = "sha256.json"
_VERIFIED: dict[Path, dict[str, tuple[int, int, int, str]]] = {}
_SPARE: Path | None = None
_log = logging.getLogger("autopeft")


def cache_dir() -> Path:
    """The cache folder: `AUTOPEFT_CACHE` where it is set, else the platform's user cache."""
    override = os.environ.get("AUTOPEFT_CACHE")
    return Path(override).expanduser() if override else Path(user_cache_dir("autopeft"))


def cache_folder(name: str) -> Path:
    """A folder of the cache, made where it is missing.

    Others cannot enter it, since it may hold the tokens of private texts; packaged models alone are open to
    whom the umask lets in.

    Raises:
        AssetError: the cache cannot be written.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(mode=0o777 if name == PACKAGED else 0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if name != PACKAGED and found.st_mode & 0o077 and found.st_uid == os.geteuid():
            with suppress(OSError):  # on a disk that is read-only it stays as it is
                folder.chmod(stat.S_IMODE(found.st_mode) & ~0o077)
    except OSError as error:
        raise AssetError(
            f"The cache folder {folder} cannot be made ({error}): set AUTOPEFT_CACHE to another."
        ) from error
    return folder


def writable_folder(name: str) -> Path:
    """A folder of the cache; where that cannot be written, one that is removed when this process ends.

    It is for what a process cannot do without.
    """
    try:
        folder = cache_folder(name)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (AssetError, OSError) as error:
        global _SPARE
        if _SPARE is None:
            _SPARE = Path(tempfile.mkdtemp(prefix="autopeft-cache-"))
            atexit.register(_forget_spare, _SPARE, os.getpid())
        spare = _SPARE / name
        spare.mkdir(exist_ok=True)
        warn_once(f"The cache cannot be written, so {spare} is used until this process ends: {error}")
        return spare


@cache
def warn_once(message: str) -> None:
    """Warn of what costs time alone, however often it happens."""
    _log.warning(message)


def spare_folder(name: str) -> Path | None:
    """The folder that `writable_folder` made in place of one of the cache, if it has."""
    found = None if _SPARE is None else _SPARE / name
    return found if found is not None and found.is_dir() else None


def _forget_spare(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked has its parent's
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path) -> None:
    """Write down the SHA-256 of every file of a folder and of the folders in it, for `intact`.

    Raises:
        OSError: a file cannot be read, or is none (a link to a folder).
    """
    sums = {name: sha256_of(path) for name, path in _sealed(folder).items()}
    (folder / _SUMS).write_text(json.dumps(sums, indent=1, sort_keys=True), encoding="utf-8")


def _sealed(folder: Path) -> dict[str, Path]:
    """All files of a folder, however deep, by their paths from it with slashes; links to folders are not
    followed, so that they count as files that are none."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {name: path for path in found if (name := path.relative_to(folder).as_posix()) != _SUMS}


def intact(folder: Path) -> bool:
    """Whether a folder holds the files that it was sealed with, byte for byte.

    What this process has read once is not read again while size and time are the same.
    """
    try:
        sums = json.loads((folder / _SUMS).read_text(encoding="utf-8"))
        found = {name: path.stat() for name, path in _sealed(folder).items()}
        if not isinstance(sums, dict) or found.keys() != sums.keys():
            return False
        state = {name: (at.st_size, at.st_mtime_ns, at.st_ino, sums[name]) for name, at in found.items()}
        if _VERIFIED.get(folder) != state:
            if any(sha256_of(folder / name) != sums[name] for name in found):
                return False
            _VERIFIED[folder] = state
    except (OSError, ValueError, RecursionError):
        return False
    return True


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish(folder: Path, fill: Callable[[Path], None], usable: Callable[[Path], bool] | None = None) -> None:
    """Make `folder`, complete or not at all; the first of several writers wins.

    Args:
        folder: the name it gets; its parent exists.
        fill: writes the content into the folder that it is given.
        usable: whether an existing folder of that name is sound; a damaged one is replaced. Without it, the
            folder is sealed, and one that is not intact is damaged.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        fill(scratch)
        if usable is None:
            seal(scratch)
            usable = intact
        if folder.exists() and not usable(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            try:
                scratch.rename(folder)
            except OSError:
                # Another process published the same content in between; anything else is a real failure.
                if not folder.is_dir():
                    raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def make_room(root: Path, size: int, limit: int) -> bool:
    """Remove what was unused for longest in a cache folder until `size` more bytes fit; whether they now do.

    They must fit the limit and the disk. Files and folders alike; what counts is what they take on disk.
    """
    entries: list[tuple[float, int, Path]] = []  # when it was last used, its bytes on disk, and where it is
    for path in root.iterdir():
        with suppress(OSError):  # it is gone
            files = list(path.rglob("*")) if path.is_dir() else [path]
            entries.append((path.stat().st_mtime, sum(f.stat().st_blocks * 512 for f in files), path))
    entries.sort()
    total = sum(used for _, used, _ in entries)
    free = shutil.disk_usage(root).free
    while size > limit - total or size > free - SPARE_DISK:
        if not entries or size > limit:
            return False
        _, used, path = entries.pop(0)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        total, free = total - used, shutil.disk_usage(root).free
    return True

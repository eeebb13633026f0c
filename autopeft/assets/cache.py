"""The cache folder, and folders in it that exist only when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_dir

from autopeft.errors import AssetError

__all__ = ["SPARE_DISK", "cache_dir", "cache_folder", "make_room", "publish"]

SPARE_DISK = 1 << 30  # bytes that are left free on the disk


def cache_dir() -> Path:
    """The cache folder: `AUTOPEFT_CACHE` where it is set, else the platform's user cache."""
    override = os.environ.get("AUTOPEFT_CACHE")
    return Path(override).expanduser() if override else Path(user_cache_dir("autopeft"))


def cache_folder(name: str) -> Path:
    """A folder of the cache, made where it is missing.

    Raises:
        AssetError: the cache cannot be written.
    """
    folder = cache_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"The cache folder {folder} cannot be made ({error}): set AUTOPEFT_CACHE to another."
        ) from error
    return folder


def publish(folder: Path, fill: Callable[[Path], None], usable: Callable[[Path], bool]) -> None:
    """Make `folder`, complete or not at all; the first of several writers wins.

    Args:
        folder: the name it gets; its parent exists.
        fill: writes the content into the folder that it is given.
        usable: whether an existing folder of that name is sound; a damaged one is replaced.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        fill(scratch)
        if folder.exists() and not usable(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            _rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, folder: Path) -> None:
    try:
        scratch.rename(folder)
    except OSError:
        # Another process published the same content in between; anything else is a real failure.
        if not folder.is_dir():
            raise


def make_room(root: Path, size: int, limit: int) -> bool:
    """Remove what was unused for longest in a cache folder until `size` more bytes fit; whether they now do.

    They must fit the limit and the disk. Files and folders alike; what counts is what they take on disk.
    """
    entries = sorted(found for path in root.iterdir() if (found := _usage(path)) is not None)
    total = sum(taken for _, taken, _ in entries)
    free = shutil.disk_usage(root).free
    while size > limit - total or size > free - SPARE_DISK:
        if not entries or size > limit:
            return False
        _, taken, path = entries.pop(0)
        _remove(path)
        total, free = total - taken, shutil.disk_usage(root).free
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _usage(path: Path) -> tuple[float, int, Path] | None:
    """When a path was last used, the bytes that it takes on disk, and it; `None` if it is gone."""
    try:
        files = list(path.iterdir()) if path.is_dir() else [path]
        return path.stat().st_mtime, sum(f.stat().st_blocks * 512 for f in files), path
    except OSError:
        return None

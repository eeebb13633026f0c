"""The files in a folder of data, and the splits that names say."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from autopeft.errors import DataError
from autopeft.tasks.images import IMAGE_SUFFIXES

__all__ = ["is_image_file", "listed_files", "split_said"]

_MOST_FILES, _MOST_IMAGES = 10_000, 1_000_000
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_APART = "-._ 0123456789"  # what parts a keyword from the rest of a name


def listed_files(folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """The files of a folder whose names are wanted, by their paths from there, sorted; what is hidden is left
    out, and links to folders are not followed.

    Raises:
        DataError: it holds far more than a data set.
    """
    found, others, images = [], 0, 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        pictures = sum(map(is_image_file, names))
        images, others = images + pictures, others + len(folders) + len(names) - pictures
        if others > _MOST_FILES or images > _MOST_IMAGES:
            raise DataError(
                f"The folder {folder} holds more than {_MOST_FILES:,} files and folders, or {_MOST_IMAGES:,} "
                "images: it is not one of a data set. Name the folder, or the file, of the data."
            )
        for name in names:
            if wanted(name) and not name.startswith("."):
                found.append(Path(place, name).relative_to(folder).as_posix())
    return sorted(found)


def is_image_file(name: str) -> bool:
    """Whether a file is an image, by its suffix."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def split_said(name: str) -> str | None:
    """The split that a folder's or a file's name says: `train`, `validation` or `test`."""
    return next((split for split in _KEYWORDS if _says(name, split)), None)


def _says(name: str, split: str) -> bool:
    apart = f"[{re.escape(_APART)}]"
    return any(re.search(rf"(^|{apart})({word})($|{apart})", name.lower()) for word in _KEYWORDS[split])

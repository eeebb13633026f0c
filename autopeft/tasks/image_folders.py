"""Folders of images in the layout of `datasets`' imagefolder, read without the library.

```
train/cat/1.png          a folder for each split, and in it one for each label
cat/1.png                or folders of labels alone
train/metadata.csv       or a table whose `file_name` says where images lie, from its own folder on
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from autopeft.errors import DataError
from autopeft.foreign import file_in, in_folder
from autopeft.tasks.class_numbers import numbered_alike
from autopeft.tasks.images import IMAGE_SUFFIXES, ImageFile
from autopeft.tasks.listing import is_image_file, listed_files, split_said
from autopeft.tasks.table import Table, refuse_rows

__all__ = ["IMAGE", "by_folder", "by_metadata", "images_in", "is_metadata"]

IMAGE, LABEL, _FILE_NAME = "image", "label", "file_name"
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
Parts = Mapping[str, Sequence[str]]


def is_metadata(file: str) -> bool:
    """Whether a file says where images lie, by its name."""
    return PurePosixPath(file).name in _METADATA


def images_in(folder: Path) -> Table:
    """All images of a folder and the folders in it, without labels.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    files = listed_files(folder, is_image_file)
    if not files:
        raise DataError(f"The folder {folder} has no images; they can be {', '.join(IMAGE_SUFFIXES)}.")
    return Table(str(folder), {IMAGE: _read(folder, files)}, {})


def _read(folder: Path, files: Sequence[str]) -> list[ImageFile]:
    for file in files:
        file_in(folder, file, DataError)
    return [ImageFile.of_file(folder / file, file) for file in files]


# Labels by folders
# ------------------------------------------------------------------------------------------------------


def by_folder(folder: Path, files: Sequence[str], parts: Parts | None = None) -> dict[str, Table]:
    """The tables of images, labelled by the folders that they lie in.

    Args:
        files: paths of images from the folder.
        parts: the same by split, where a README says it; default: by folders above those of labels.

    Raises:
        DataError: no folder says the label of an image, or it cannot be read.
    """
    found = {}
    for split, own in (_parts(folder, files) if parts is None else parts).items():
        labels = [PurePosixPath(file).parent.name for file in own]
        bare = next((file for file, label in zip(own, labels, strict=True) if not label), None)
        if bare is not None:
            raise _unlabelled(folder, bare)
        found[split] = Table(f"{folder} ({split})", {IMAGE: _read(folder, own), LABEL: labels}, {})
    return found


def _parts(folder: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Images by split: that of the outermost folder which says one and has folders of labels in it."""
    found: dict[str, list[str]] = {}
    others = []
    for file in files:
        *above, _ = PurePosixPath(file).parts[:-1] or ("",)
        split = next(filter(None, map(split_said, above)), None)
        if split is None:
            others.append(file)
        else:
            found.setdefault(split, []).append(file)
    bare = next((file for file in others if found or not PurePosixPath(file).parts[:-1]), None)
    if bare is None and others and all(split_said(PurePosixPath(file).parts[0]) for file in others):
        bare = others[0]
    if bare is not None:
        raise _unlabelled(folder, bare)
    return found or {"train": others}


def _unlabelled(folder: Path, file: str) -> DataError:
    return DataError(
        f"The folder {folder} says no label of {file}: images lie in folders of their labels (cat/1.png, or "
        f"train/cat/1.png and test/cat/1.png), or {_METADATA[0]} names each in its column {_FILE_NAME!r}."
    )


# Labels by metadata
# ------------------------------------------------------------------------------------------------------


def by_metadata(
    folder: Path,
    files: Sequence[str],
    metadata: Mapping[str, Table],
    parts: Parts | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Table]:
    """The tables of images that metadata name, in the splits of the folders that they lie in; images that
    none names are left out.

    Args:
        files, parts: see `by_folder`.
        metadata: tables by their paths from the folder.
        classes: the names of the classes by column, where a README says them.

    Raises:
        DataError: metadata name what is no image of the folder, have no or other columns, or number classes
            that only others name.
    """
    first, known = next(iter(metadata.values())), set(files)
    splits = {file: split for split, own in (parts or {}).items() for file in own}
    rows: dict[str, list[tuple[str, str, int]]] = {}
    for path, table in metadata.items():
        _check_columns(table, first)
        for i, name in enumerate(_names(folder, path, table)):
            if name not in known:
                raise DataError(
                    f"{table.where}: row {i + 1} names {name!r:.200}, which is no image of {folder}."
                )
            said = next(filter(None, map(split_said, PurePosixPath(name).parts[:-1])), "train")
            rows.setdefault(splits.get(name, said), []).append((name, path, i))
    found = {}
    for split, own in rows.items():
        paths = list(dict.fromkeys(path for _, path, _ in own))
        tables = numbered_alike([metadata[path] for path in paths], classes or {})
        at = dict(zip(paths, tables, strict=True))
        columns: dict[str, Any] = {IMAGE: _read(folder, [name for name, _, _ in own])}
        for column in first.columns:
            if column != _FILE_NAME:
                columns[column] = [at[path].columns[column][i] for _, path, i in own]
        names = {column: known for table in tables for column, known in table.label_names.items()}
        found[split] = Table(f"{folder} ({split})", columns, names)
    return found


def _check_columns(table: Table, first: Table) -> None:
    if set(table.columns) != set(first.columns):
        raise DataError(f"{table.where} has other columns than {first.where}.")
    if _FILE_NAME not in table.columns or IMAGE in table.columns:
        raise DataError(
            f"{table.where} has the columns {', '.join(map(repr, list(table.columns)[:12]))}; metadata have "
            f"{_FILE_NAME!r}, which names the images, and no {IMAGE!r}, which is where these come."
        )


def _names(folder: Path, path: str, table: Table) -> list[str]:
    """The images that metadata name, by their paths from the folder."""
    given, base = table.columns[_FILE_NAME], PurePosixPath(path).parent
    wrong = [i for i, v in enumerate(given) if not isinstance(v, str) or not v.strip()]
    refuse_rows(table, _FILE_NAME, "no name of a file", wrong)
    outside = [i for i, v in enumerate(given) if v.startswith("/") or not in_folder(str(base / v), folder)]
    refuse_rows(table, _FILE_NAME, "a path that leaves the folder", outside)
    return [_plain(base / value) for value in given]


def _plain(path: PurePosixPath) -> str:
    """A path without `..`."""
    kept: list[str] = []
    for part in path.parts:
        kept = kept[:-1] if part == ".." else [*kept, part]
    return "/".join(kept)
